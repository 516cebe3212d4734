"""What is wrong with an adapter of a variant, told from small files before the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import StrictBool, StrictStr

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign, at_home, is_folder, read_json
from sae_lm_eval.runs.model_files import hub_file
from sae_lm_eval.splicing.adapter_spec import FILE, AdapterSpec


class AdapterConfig(Foreign):
    """What is read of an adapter's configuration before PEFT reads it whole."""

    peft_type: StrictStr | None = None
    init_lora_weights: StrictBool | StrictStr | None = None


def check_adapter(given: Any, model_args: Mapping[str, Any]) -> None:
    """Raise `UserError` for what loading the adapter that `peft=` of a variant names would stumble over, if any is."""
    if given is None:
        return
    spec = AdapterSpec.parse(given)
    if find_spec("peft") is None:
        raise UserError("peft= needs the package peft: pip install peft.")
    if model_args.get("peft") is not None:
        raise UserError(
            f"peft={spec} of a variant cannot be put beside peft={model_args['peft']} in model_args, which the "
            "baseline has too: give one of the two."
        )
    if is_folder(at_home(spec.place)):
        file: Path | None = at_home(spec.place) / FILE
        if not (at_home(spec.place) / FILE).is_file():
            raise UserError(f"There is no adapter in the folder '{spec.place}': it has no {FILE}.")
    else:
        file = hub_file(spec.place, FILE, spec.revision, "adapter")
    if file is not None:
        config = read_json(file, AdapterConfig, "an adapter's configuration")
        if config.peft_type is None:
            raise UserError(f"'{file}' does not say which kind of adapter it is: it has no peft_type.")
        spec.check(config.as_given())
