"""The original model: parameters and training tokens, from a table of known models or from the user."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypedDict

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling.data_files import Row, data_path, read_rows, unknown

TOKEN_CAVEATS = {
    "suite": "training tokens are published for the whole suite of models, not for this one",
    "at most": "training tokens are published as an upper bound",
    "assumed": "training tokens are an assumption",
}


class OriginalNumbers(TypedDict, total=False):
    """What a user may say of the original: a known model, or its numbers, which win."""

    model: str | None
    params: float | None
    tokens: float | None
    flops: float | None
    vocabulary: int | None
    bytes_per_token: float | None


@dataclass(frozen=True, kw_only=True)
class Original:
    """The model before the splice. Parameters with embeddings, training tokens, training FLOPs, size of the vocabulary.

    None is "not known". `training` other than "pretrained" breaks C = 6ND and is flagged. `bytes_per_token` is that of
    its `tokenizer` on the text of the losses.
    """

    name: str = "the original"
    params: float | None = None
    params_non_embedding: float | None = None
    tokens: float | None = None
    flops: float | None = None
    vocabulary: int | None = None
    tokenizer: str = ""
    bytes_per_token: float | None = None
    training: str = "pretrained"
    tokens_status: str = "given"
    tokens_source: str = "given by the user"
    params_source: str = "given by the user"

    @property
    def compute(self) -> float | None:
        """Training FLOPs: as given, or 6ND."""
        if self.flops is not None:
            return self.flops
        if self.params is None or self.tokens is None:
            return None
        return 6 * self.params * self.tokens

    @property
    def caveats(self) -> tuple[str, ...]:
        flags = []
        if self.training != "pretrained":
            flags.append(f"{self.name} is {self.training}: its loss was not bought by C = 6ND alone")
        if self.tokens_status in TOKEN_CAVEATS:
            flags.append(f"{TOKEN_CAVEATS[self.tokens_status]} ({self.name})")
        return tuple(flags)

    @property
    def off_6nd(self) -> str | None:
        """What is to be said where a law takes N and D, and the FLOPs given are not 6ND."""
        if self.flops is None or self.params is None or self.tokens is None:
            return None
        times = self.flops / (6 * self.params * self.tokens)
        if abs(times - 1) < 0.01:
            return None
        return f"the FLOPs given are {times:.3g} times 6ND and do not enter: this law takes parameters and tokens"

    def with_flops(self, flops: float | None) -> "Original":
        """With training FLOPs C; of parameters and tokens, the one that is not known follows from C = 6ND."""
        if flops is None:
            return self
        original = replace(self, flops=flops)
        if self.tokens is None and self.params is not None:
            origin = {"tokens_status": "given", "tokens_source": "the FLOPs given, by C = 6ND"}
            return replace(original, tokens=flops / (6 * self.params), **origin)
        if self.params is None and self.tokens is not None:
            return replace(original, params=flops / (6 * self.tokens), params_source="the FLOPs given, by C = 6ND")
        return original

    @property
    def lacks(self) -> str | None:
        """What a law would need and does not have, with the way to give it; None when complete."""
        if self.params is None:
            return (
                "needs parameters and training tokens: give a known model (--model pythia-70m), "
                "or both numbers (--params 124e6 --tokens 1e10)"
            )
        if self.tokens is None:
            has_source = self.tokens_source not in ("given by the user", "not known")
            why = f" ({self.name}: {self.tokens_source})" if has_source else ""
            return (
                f"needs training tokens{why}: give a count (--tokens 1e10), "
                "or a measured family, which needs none (--family FILE.csv)"
            )
        return None


@functools.cache
def presets() -> Mapping[str, Original]:
    """Known models by name, each with the source of its parameter and token counts."""
    return MappingProxyType({row["model"]: _preset(row) for row in _rows()})


def find_preset(name: str) -> Original | None:
    """The known model of a name or Hugging Face repository, letter case aside; None if there is none.

    Instruction-tuned variants are not their base model and are not found.
    """
    key = _aliases().get(name.lower())
    return None if key is None else presets()[key]


def get_original(
    *,
    model: str | None = None,
    params: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    vocabulary: int | None = None,
    bytes_per_token: float | None = None,
) -> Original:
    """The original from a known model, from numbers, or from both (numbers win).

    Raises UserError for numbers that are not positive and for an unknown model without parameters.
    """
    for what, value in (
        ("parameters", params),
        ("tokens", tokens),
        ("FLOPs", flops),
        ("tokens in the vocabulary", vocabulary),
        ("bytes per token", bytes_per_token),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"The number of {what} is {value}; it must be positive.")
    preset = None if model is None else find_preset(model)
    if model is not None and preset is None and params is None:
        raise unknown("model with known parameters", model, presets(), _aliases())
    original = preset or Original(name=model or "the original")
    if params is not None:
        original = replace(original, params=params, params_non_embedding=None, params_source="given by the user")
    if tokens is not None:
        original = replace(original, tokens=tokens, tokens_status="given", tokens_source="given by the user")
    if vocabulary is not None:
        original = replace(original, vocabulary=vocabulary)
    if bytes_per_token is not None:
        original = replace(original, bytes_per_token=bytes_per_token)
    return original.with_flops(flops)


def _rows() -> list[Row]:
    return read_rows(data_path("model_presets.csv"), required=["model", "aliases", "params", "tokens"])


@functools.cache
def _aliases() -> dict[str, str]:
    aliases = {}
    for row in _rows():
        for alias in (row["model"], *row["aliases"].split("|")):
            aliases[alias.lower()] = row["model"]
    return aliases


def _preset(row: Row) -> Original:
    return Original(
        name=row["model"],
        params=float(row["params"]),
        params_non_embedding=float(row["params_non_embedding"]),
        tokens=None if row["tokens"] is None else float(row["tokens"]),
        vocabulary=int(row["vocabulary"]),
        tokenizer=row["tokenizer"],
        training=row["training"],
        tokens_status=row["tokens_status"],
        tokens_source=row["tokens_source"],
        params_source=row["params_source"],
    )
