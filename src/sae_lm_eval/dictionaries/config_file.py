"""cfg.json of a dictionary: what of it is read here has types; the rest is for the library that reads it whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt, StrictStr

from sae_lm_eval.files.reading import Foreign, read_json

Width = Annotated[StrictInt, Field(ge=1, lt=2**40)]
Length = Annotated[StrictInt, Field(ge=0, lt=2**40)]


class _Said(Foreign):
    hook_name: StrictStr | None = None
    hook_name_out: StrictStr | None = None
    hook_point: StrictStr | None = None
    model_name: StrictStr | None = None
    hf_hook_name: StrictStr | None = None
    hf_hook_name_out: StrictStr | None = None
    d_in: Width | None = None
    d_sae: Width | None = None
    context_size: Length | None = None
    prepend_bos: StrictBool | None = None
    seqpos_slice: Annotated[list[StrictInt | None], Field(max_length=3)] | None = None
    exclude_special_tokens: StrictBool | list[StrictInt] | None = None
    model_from_pretrained_kwargs: dict[StrictStr, Any] | None = None


class _Configuration(_Said):
    architecture: StrictStr | None = None
    apply_b_dec_to_input: StrictBool = True
    metadata: _Said | None = None


def read_configuration(file: Path) -> dict[str, Any]:
    """What the file says, before a library fills its gaps. Raises `UserError` where it is no configuration."""
    return read_json(file, _Configuration, "a configuration of a dictionary").as_given()


def with_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration and what stands under `metadata`, which wins."""
    return {**config, **(config.get("metadata") or {})}
