"""A run in a folder that holds one already: what was asked there before stays, and variants may be added."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import StrictStr

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.files.reading import Foreign, checked
from sae_lm_eval.runs.asked import VariantRequest
from sae_lm_eval.runs.folder_names import OF_RUN, check_name
from sae_lm_eval.runs.sweep import Sweep
from sae_lm_eval.runtime.processes import rank
from sae_lm_eval.runtime.run_files import SETTINGS, read_record
from sae_lm_eval.runtime.run_folder import free_path, write_json
from sae_lm_eval.splicing.splice_arguments import LATENT_EDITS, OF_SITES

logger = logger_of(__name__)


class EarlierVariant(Foreign):
    """A variant in the record of a run."""

    name: StrictStr
    arguments: dict[StrictStr, Any]
    control_of: list[StrictStr]


def with_earlier(sweep: Sweep, folder: Path) -> Sweep:
    """The sweep with the variants that the run in `folder` has besides, these first, as they were asked for there.

    Left out, here and in the record, of which a copy is kept: entries that are no variant, with a warning; and edits of
    latents in a mode that does not ask the dictionary, which changed nothing. What is no record of a run is left for
    `remember` to refuse. To be asked of a folder that is `held`.
    """
    record = read_record(folder / SETTINGS, dict[str, Any])
    listed = record.get("variants") if isinstance(record, dict) else None
    names = [variant.name for variant in sweep.variants]
    before: list[VariantRequest] = []
    kept: list[Any] = []
    for number, entry in enumerate(listed if isinstance(listed, list) else []):
        try:
            variant = checked(EarlierVariant, entry, f"run.json, variants.{number},", "a variant of a run")
            # A name may be taken by now that was free then.
            check_name(variant.name, f"run.json, variants.{number}", taken=OF_RUN)
        except UserError as error:
            logger.warning("A variant that was run here before is left out. %s", error)
            continue
        arguments = _with_effect(variant.arguments)
        kept.append({**variant.as_given(), "arguments": arguments})
        if variant.name not in names:
            before.append(VariantRequest(variant.name, arguments, tuple(variant.control_of)))
            names.append(variant.name)
    if isinstance(record, dict) and isinstance(listed, list) and kept != listed and rank() == 0:
        shutil.copyfile(folder / SETTINGS, free_path(folder / f".{SETTINGS}.before"))
        write_json(folder / SETTINGS, {**record, "variants": kept})
    return replace(sweep, variants=(*before, *sweep.variants))


def _with_effect(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a variant, without edits of latents where its mode leaves the dictionary out."""
    edits = LATENT_EDITS if arguments.get("splice") in OF_SITES else ()
    return {name: value for name, value in arguments.items() if name not in edits}
