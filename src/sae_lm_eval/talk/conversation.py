"""A model, its variants, and what they answer to a prompt."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# (lm_eval's @register_model hides the adapter from type checkers.)

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.harness.model import SaeHFLM, innermost
from sae_lm_eval.runtime import text_files
from sae_lm_eval.splicing.activations import mean_activations
from sae_lm_eval.splicing.arguments import dtype_of, sources_of
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.splicing.splice_arguments import MODES
from sae_lm_eval.splicing.variants import build_variant, describe, place, with_means
from sae_lm_eval.talk.detokenize import decoder, namer, pieces
from sae_lm_eval.talk.sampling import BASELINE, Column, Continuation, Sampling, generate, parting

logger = logging.getLogger(f"lm_eval.{__name__}")  # below lm_eval's own, whose verbosity the user sets

FORMATS = ("chat", "plain")


@dataclass(frozen=True)
class Answer:
    """What a column wrote after `prompt`; `parted` is the index in `ids` of its first token that is not the baseline's.

    `text` is without special tokens; `ended` is None where writing was interrupted.
    """

    column: Column
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    ended: str | None
    parted: int | None


@dataclass(frozen=True)
class Exchange:
    """A prompt of the user's and the answers to it, the baseline's first.

    `beyond` is how many tokens of the longest lie past the context that a dictionary was trained on.
    """

    prompt: str
    system: str | None
    sampling: Sampling
    answers: tuple[Answer, ...]
    beyond: int
    provenance: Mapping[str, Any]


class Model:
    """A loaded model with its columns: the baseline, and a variant for each `sae=` of `model_args` and `saes`.

    Raises `UserError` for all that `lm_eval --model sae_hf` would refuse.
    """

    def __init__(self, model_args: Mapping[str, Any], saes: Sequence[str] = (), prompt_format: str | None = None):
        self.model_args = {name: value for name, value in model_args.items() if name != "sae"}
        own = [model_args["sae"]] if model_args.get("sae") is not None else []
        specs = [*own, *saes]
        if not specs:
            raise UserError("Name a dictionary: sae=SPEC in --model_args, or --sae SPEC for each variant.")
        if twice := [spec for i, spec in enumerate(specs) if spec in specs[:i]]:
            raise UserError(f"{twice[0]} is given twice: each variant is a column, and no two may be the same.")
        self.lm: Any = SaeHFLM(**self.model_args, sae=specs[0])
        self.model = innermost(self.lm.model)
        self.dictionaries = [[splice.dictionary for splice in self.lm.variant.splices], *map(self._load, specs[1:])]
        self.lm._set_bos(any(dictionary.prepend_bos for of_variant in self.dictionaries for dictionary in of_variant))
        self.choices = self.lm.choices
        self.variants = [self.lm.variant, *map(self._build, self.dictionaries[1:])]
        self._provenance: dict[str, Any] | None = None
        self.format = self._format(prompt_format)
        self.decode = decoder(self.lm.tokenizer)
        self.name_token = namer(self.lm.tokenizer, self.lm.tok_encode("a", add_special_tokens=False)[-1])

    # -- variants -----------------------------------------------------------------------------------------

    @property
    def columns(self) -> list[Column]:
        return [Column(BASELINE), *self.variant_columns]

    @property
    def variant_columns(self) -> list[Column]:
        mode = "" if self.choices.splice == "reconstruction" else f" ({self.choices.splice})"
        names = ["+".join(dictionary.name for dictionary in of_variant) for of_variant in self.dictionaries]
        return [Column(name + mode, variant) for name, variant in zip(names, self.variants, strict=True)]

    def set_splice(self, mode: str) -> None:
        """Let another mode take the place of the activations. Raises `UserError` and changes nothing if it cannot."""
        one_of(mode, MODES, "splice")
        before = self.choices
        self.choices = replace(before, splice=mode)
        try:
            self.variants = [self._build(of_variant) for of_variant in self.dictionaries]
        except UserError:
            self.choices = before
            raise
        self._provenance = None

    def _load(self, spec: str) -> list[Dictionary]:
        dtype = dtype_of(self.model_args.get("sae_dtype", "float32"))
        factor = self.model_args.get("norm_factor")
        loaded = [load(source, dtype=dtype, norm_factor=factor) for source in sources_of(spec)]
        for dictionary in loaded:
            for remark in dictionary.remarks:
                logger.warning("%s: %s", dictionary.name, remark)
        return loaded

    def _build(self, dictionaries: Sequence[Dictionary]) -> Variant:
        variant = build_variant(self.model, dictionaries, self.choices, self.lm.special_ids, self.lm.declared_special)
        place(self.model, variant)
        if self.choices.splice != "mean":
            return variant
        source = self.lm.mean_source
        if source is None:
            raise UserError("splice=mean needs the text it averages: start with splice=mean,mean_text=FILE.")
        texts = self.lm.windows(text_files.read_documents(source["text"], tokens=source["tokens"]), source["tokens"])
        return with_means(variant, mean_activations(self.model, variant, texts, self.lm.special_ids))

    # -- prompts ------------------------------------------------------------------------------------------

    def _format(self, asked: str | None) -> str:
        template = self.lm.tokenizer.chat_template
        if asked is None:
            return "chat" if template else "plain"
        if one_of(asked, FORMATS, "--prompt_format") == "chat" and not template:
            raise UserError(f"{self.name} has no chat template: use --prompt_format plain.")
        return asked

    def check_system(self, system: str | None) -> None:
        """Raise `UserError` where there is no chat template to put a system prompt in."""
        if system is not None and self.format == "plain":
            raise UserError(f"A system prompt needs a chat template, and {self.name} is read as plain text here.")

    def encode(self, prompt: str, messages: Sequence[dict[str, str]]) -> list[int]:
        """The ids of `messages` by the chat template, or of `prompt` alone, with BOS as the adapter has it."""
        ids = self.lm.tok_encode(self.lm.apply_chat_template(list(messages)) if self.format == "chat" else prompt)
        return ids or [self.lm.prefix_token_id]

    def text_of(self, written: Continuation) -> str:
        """What was written, without special tokens."""
        special = {*self.lm.tokenizer.all_special_ids, *self.lm.special_ids}
        added = pieces(self.decode, [*written.prompt, *written.ids], len(written.prompt))
        return "".join(piece for piece, token in zip(added, written.ids, strict=True) if token not in special)

    @property
    def context_size(self) -> int:
        """The longest text, in tokens, that no dictionary has to stretch for."""
        trained = [d.context_size for of_variant in self.dictionaries for d in of_variant if d.context_size]
        return min([self.lm.max_length, *trained])

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids of eos that the tokenizer, the model's configuration and its generation defaults have."""
        found: set[int] = set()
        for source in (self.lm.tokenizer, self.model.config, getattr(self.model, "generation_config", None)):
            ids = getattr(source, "eos_token_id", None)
            found.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
        return frozenset(found)

    # -- what the numbers carry ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return str(self.model.config._name_or_path)

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything besides prompt and sampling that answers and KL depend on, as plain values."""
        if self._provenance is None:  # it hashes the dictionaries' weights
            mode = self.choices.splice
            self._provenance = {
                "model": self.name,
                "revision": getattr(self.model.config, "_commit_hash", None) or self.lm.revision,
                **{name: value for name, value in self.lm.provenance().items() if name != "splices"},
                "splice": mode,
                "seed": self.choices.seed if mode == "random_error" else None,
                "mean": self.lm.mean_source if mode == "mean" else None,
                "prompt_format": self.format,
                "trained_context": self.context_size,
                "variants": {c.name: describe(c.variant) for c in self.variant_columns if c.variant},
            }
        return self._provenance


class Conversation:
    """Prompts and answers; in the chat format each column goes on from its own answers."""

    def __init__(self, model: Model, sampling: Sampling, system: str | None = None) -> None:
        model.check_system(system)
        self.model, self.sampling, self.system = model, sampling, system
        first = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[list[dict[str, str]]] = [list(first) for _ in model.columns]

    def ask(self, prompt: str) -> Iterator[list[Continuation]]:
        """What the columns have written so far, at each turn; see `generate`."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"The prompt {prompt!r} is not text in UTF-8: {error.reason}.") from error
        model, asked = self.model, {"role": "user", "content": prompt}
        return generate(
            model.model,
            model.columns,
            [model.encode(prompt, [*before, asked]) for before in self.messages],
            self.sampling,
            stop_ids=model.stop_ids,
            context=model.lm.max_length,
        )

    def finish(self, prompt: str, texts: Sequence[Continuation]) -> Exchange:
        """The exchange that `texts` make, which the conversation then goes on from."""
        model, baseline = self.model, texts[0].ids
        answers = tuple(
            Answer(
                written.column,
                tuple(written.prompt),
                tuple(written.ids),
                model.text_of(written),
                written.ended,
                None if written.column.variant is None else parting(baseline, written.ids),
            )
            for written in texts
        )
        for messages, answer in zip(self.messages, answers, strict=True):
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.text}]
        longest = max(len(answer.prompt) + len(answer.ids) for answer in answers)
        beyond = max(0, longest - model.context_size)
        return Exchange(prompt, self.system, self.sampling, answers, beyond, model.provenance)

    def answer(self, prompt: str) -> Exchange:
        """Ask, and wait for the end."""
        *_, last = self.ask(prompt)
        return self.finish(prompt, last)


def record(exchange: Exchange) -> dict[str, Any]:
    """An exchange as plain values, with all that it depends on: a line of jsonl."""
    return {
        "prompt": exchange.prompt,
        "system": exchange.system,
        **vars(exchange.sampling),
        "answers": [
            {
                "column": answer.column.name,
                "text": answer.text,
                "tokens": list(answer.ids),
                "ended": answer.ended,
                "parted": answer.parted,
            }
            for answer in exchange.answers
        ],
        "tokens_beyond_trained_context": exchange.beyond,
        "provenance": dict(exchange.provenance),
    }
