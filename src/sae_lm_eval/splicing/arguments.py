"""The adapter's arguments as text or objects -> values; no model is looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load
from sae_lm_eval.dictionaries.spec import parse_specs
from sae_lm_eval.errors import UserError, did_you_mean, one_of
from sae_lm_eval.runtime import text_files
from sae_lm_eval.splicing.splice_arguments import SpliceArguments
from sae_lm_eval.splicing.variants import Choices

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Wanted:
    """A variant as the user asks for it, before any model is loaded."""

    dictionaries: tuple[Dictionary, ...]
    choices: Choices
    mean_text: str | None
    mean_tokens: int


def wanted_of(*given: Any, dictionaries: Sequence[Dictionary] | None = None, **named: Any) -> Wanted:
    """The variant that `SpliceArguments(*given, **named)` ask for, its dictionaries loaded.

    `dictionaries` are those of `sae`, where they are loaded already.

    Raises `UserError` for whatever the user can mend.
    """
    arguments = SpliceArguments(*given, **named)
    choices, dtype = choices_of(arguments), dtype_of(arguments.sae_dtype)
    mean_tokens = whole(arguments.mean_tokens, "mean_tokens", least=1)
    if choices.splice == "mean" and arguments.mean_text is None:
        raise UserError(
            "splice=mean needs mean_text=FILE (.txt, .jsonl or .parquet): the text whose activations are averaged."
        )
    if choices.splice != "mean" and arguments.mean_text is not None:
        raise UserError(f"mean_text= is for splice=mean, and splice is {choices.splice}.")
    if arguments.mean_text is not None:
        text_files.check_file(arguments.mean_text)
    if dictionaries is None:
        untouched = isinstance(arguments.sae, list) and not arguments.sae and choices.splice == "none"
        sources = [] if untouched else sources_of(arguments.sae)
        dictionaries = [load(source, dtype=dtype, norm_factor=arguments.norm_factor) for source in sources]
    return Wanted(tuple(dictionaries), choices, arguments.mean_text, mean_tokens)


def dtype_of(name: str) -> torch.dtype:
    """The dtype of dictionaries that `sae_dtype=` names."""
    return DTYPES[one_of(name, DTYPES, "sae_dtype")]


def sources_of(sae: Any) -> list[Any]:
    """The dictionaries that `sae=` names or holds: specs, or objects as they were given."""
    if sae is None or (isinstance(sae, (str, list, tuple)) and not sae):
        raise UserError("sae= is missing: name a dictionary, as in sae=gpt2-small-res-jb#blocks.8.hook_resid_pre.")
    if isinstance(sae, str):
        return list(parse_specs(sae))
    if isinstance(sae, (list, tuple)):
        return [source for item in sae for source in sources_of(item)]
    return [sae]


def choices_of(arguments: SpliceArguments) -> Choices:
    """What is said of a variant beyond its dictionaries; `+` joins what goes by dictionary."""
    hook, hook_map = arguments.hook, arguments.hook_map
    return Choices(
        arguments.splice,
        arguments.splice_tokens,
        hooks=None if hook is None else tuple(str(hook).split("+")),
        hook_maps=None if hook_map is None else tuple(str(hook_map).split("+")),
        seed=whole(arguments.seed, "seed", least=0),
        scale=finite(arguments.scale, "scale"),
    )


def finite(value: Any, name: str) -> float:
    """`value` as a finite number."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name}={value} must be a number, as in {name}=0.5.")
    return number


def whole(value: Any, name: str, *, least: int) -> int:
    """`value` as a whole number of at least `least`; lm_eval reads 1e3 as a float."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool) or number != value or number < least:
        raise UserError(f"{name}={value} must be a whole number of at least {least}.")
    return number


def refuse_misspelt(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UserError` for a name that is not known and near to one that is; others may be the model's own."""
    known = list(known)
    for name in given:
        if name not in known and (hint := did_you_mean(name, known, most=1)):
            raise UserError(f"sae_hf has no argument '{name}'.{hint}")
