"""A run in a folder that holds one already: what was asked there before stays, and variants may be added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import StrictStr

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign, checked
from sae_lm_eval.runs.asked import VariantRequest
from sae_lm_eval.runs.folder_names import check_name
from sae_lm_eval.runs.sweep import Sweep
from sae_lm_eval.runtime.run_files import SETTINGS, read_record


class EarlierVariant(Foreign):
    """A variant in the record of a run."""

    name: StrictStr
    arguments: dict[StrictStr, Any]
    control_of: list[StrictStr]


def with_earlier(sweep: Sweep, folder: Path) -> Sweep:
    """The sweep with the variants that the run in `folder` has besides, these first, as they were asked for there.

    What is no record of a run is left for `remember` to refuse. To be asked of a folder that is `held`.
    """
    record = read_record(folder / SETTINGS, dict[str, Any])
    listed = record.get("variants") if isinstance(record, dict) else None
    named = {one.name for one in sweep.variants}
    try:
        earlier = checked(list[EarlierVariant], listed or [], "run.json", "a record of a run")
        before = [
            VariantRequest(check_name(one.name, "run.json"), one.arguments, tuple(one.control_of)) for one in earlier
        ]
    except UserError:
        return sweep
    return replace(sweep, variants=(*(one for one in before if one.name not in named), *sweep.variants))
