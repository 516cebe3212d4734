"""A run in a folder that holds one already: what was asked there before stays, and variants may be added."""

from __future__ import annotations

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
from sae_lm_eval.runtime.run_files import SETTINGS, read_record

logger = logger_of(__name__)


class EarlierVariant(Foreign):
    """A variant in the record of a run."""

    name: StrictStr
    arguments: dict[StrictStr, Any]
    control_of: list[StrictStr]


def with_earlier(sweep: Sweep, folder: Path) -> Sweep:
    """The sweep with the variants that the run in `folder` has besides, these first, as they were asked for there.

    An entry that is no variant is left out with a warning, and what is no record of a run left for `remember` to
    refuse. To be asked of a folder that is `held`.
    """
    record = read_record(folder / SETTINGS, dict[str, Any])
    listed = record.get("variants") if isinstance(record, dict) else None
    named = [one.name for one in sweep.variants]
    before: list[VariantRequest] = []
    for number, entry in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(entry, dict) and entry.get("name") in named:
            continue
        try:
            one = checked(EarlierVariant, entry, f"run.json, variants.{number},", "a variant of a run")
            # A name may be taken by now that was free then.
            check_name(one.name, f"run.json, variants.{number}", taken=OF_RUN)
        except UserError as error:
            logger.warning("A variant that was run here before is left out. %s", error)
            continue
        before.append(VariantRequest(one.name, one.arguments, tuple(one.control_of)))
        named.append(one.name)
    return replace(sweep, variants=(*before, *sweep.variants))
