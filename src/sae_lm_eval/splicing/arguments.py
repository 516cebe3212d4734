"""The adapter's arguments as text or objects -> values; no model is looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load_all
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.dictionaries.spec_patterns import specs_of
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.runtime import text_files
from sae_lm_eval.splicing.adapter_spec import AdapterSpec
from sae_lm_eval.splicing.choices import DTYPE_NAMES, Choices, choices_of, whole
from sae_lm_eval.splicing.edit_spec import Edit, asked_edit
from sae_lm_eval.splicing.splice_arguments import SpliceArguments


@dataclass(frozen=True)
class RequestedSplices:
    """A variant as the user asks for it, before any model is loaded."""

    dictionaries: tuple[Dictionary, ...]
    choices: Choices
    mean_text: str | None
    mean_tokens: int
    edit: Edit | None = None
    adapter: AdapterSpec | None = None
    layers_text: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The files that the variant is made by."""
        return tuple(filter(None, (self.mean_text, self.layers_text)))


def requested_splices(
    sae: Any = None, *, dictionaries: Sequence[Dictionary] | None = None, **named: Any
) -> RequestedSplices:
    """The variant that `SpliceArguments(sae, **named)` ask for, its dictionaries loaded.

    `dictionaries` are those of `sae`, where they are loaded already.

    Raises `UserError` for whatever the user can mend.
    """
    arguments = SpliceArguments(sae, **named)
    choices, dtype, edit = choices_of(arguments), dtype_of(arguments.sae_dtype), asked_edit(arguments)
    mean_tokens = whole(arguments.mean_tokens, "mean_tokens", least=1)
    if choices.splice == "mean" and arguments.mean_text is None:
        raise UserError(
            "splice=mean needs mean_text=FILE (.txt, .jsonl or .parquet): the text whose activations are averaged."
        )
    if choices.splice != "mean" and arguments.mean_text is not None:
        raise UserError(f"mean_text= is for splice=mean, and splice is {choices.splice}.")
    for file in filter(None, (arguments.mean_text, arguments.layers_text)):
        text_files.check_file(file)
    adapter = None if arguments.peft is None else AdapterSpec.parse(arguments.peft)
    if dictionaries is None:
        bare = choices.splice == "none" or adapter is not None
        untouched = edit is not None or (bare and arguments.sae in (None, [], ()))
        dictionaries = () if untouched else dictionaries_of(arguments.sae, dtype, arguments.norm_factor)
    dictionaries, choices = _at_layers(dictionaries, choices)
    files = arguments.mean_text, mean_tokens
    return RequestedSplices(tuple(dictionaries), choices, *files, edit, adapter, arguments.layers_text)


def _at_layers(dictionaries: Sequence[Dictionary], choices: Choices) -> tuple[Sequence[Dictionary], Choices]:
    """The dictionaries that write at the layers that were chosen, with their own hooks and maps: nothing of the others
    counts.
    """
    if choices.layers is None:
        return dictionaries, choices
    hooks = choices.hooks or [dictionary.hook_out for dictionary in dictionaries]
    matches = [re.search(r"(?:^|\.)(\d+)\.", str(hook).split(":")[-1]) for hook in hooks]
    layers = [int(match[1]) if match else None for match in matches]
    if choices.layers.best is not None:
        return dictionaries, choices  # found once the model is there
    if missing := [layer for layer in choices.layers if layer not in layers]:
        at = ", ".join(str(layer) for layer in sorted({layer for layer in layers if layer is not None})) or "none"
        raise UserError(f"splice_layers= names layer {missing[0]}, and the dictionaries write at the layers {at}.")
    places = [place for place, layer in enumerate(layers) if layer in choices.layers]

    def own(each: Sequence[Any] | None) -> tuple[Any, ...] | None:
        if each is None or len(each) != len(dictionaries):
            return None if each is None else tuple(each)
        return tuple(each[place] for place in places)

    kept = replace(choices, hooks=own(choices.hooks), hook_maps=own(choices.hook_maps))
    return [dictionaries[place] for place in places], kept


def dictionaries_of(sae: Any, dtype: torch.dtype, norm_factor: float | str | None) -> tuple[Dictionary, ...]:
    """The dictionaries that `sae=` names or holds, loaded. Raises `UserError` as `load_dictionaries` does."""
    return load_all(sources_of(sae), dtype=dtype, norm_factor=norm_factor)


def dtype_of(name: str) -> torch.dtype:
    """The dtype of dictionaries that `sae_dtype=` names."""
    return getattr(torch, one_of(name, DTYPE_NAMES, "sae_dtype"))


def sources_of(sae: Any) -> list[Any]:
    """The dictionaries that `sae=` names or holds: specs, or objects as they were given."""
    if sae is None or (isinstance(sae, (str, list, tuple)) and not sae):
        raise UserError("sae= is missing: name a dictionary, as in sae=gpt2-small-res-jb#blocks.8.hook_resid_pre.")
    if isinstance(sae, str):
        return list(specs_of(sae))
    if isinstance(sae, Path):
        return [SaeSpec(str(sae))]
    if isinstance(sae, (list, tuple)):
        return [source for item in sae for source in sources_of(item)]
    return [sae]
