"""A run in a folder that holds one already: what was asked there before stays, and variants may be added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lm_eval.runs.asked import VariantRequest
from sae_lm_eval.runs.sweep import Sweep
from sae_lm_eval.runtime.run_files import SETTINGS, read_record


def with_earlier(sweep: Sweep, folder: Path) -> Sweep:
    """The sweep with the variants that the run in `folder` has besides, these first, as they were asked for there.

    What is no record of a run is left for `remember` to refuse. To be asked of a folder that is `held`.
    """
    record = read_record(folder / SETTINGS, dict[str, Any])
    listed = record.get("variants") if isinstance(record, dict) else None
    named = {one.name for one in sweep.variants}
    try:
        before = [VariantRequest(one["name"], dict(one["arguments"]), tuple(one["control_of"])) for one in listed or []]
    except (TypeError, KeyError, ValueError):
        return sweep
    return replace(sweep, variants=(*(one for one in before if one.name not in named), *sweep.variants))
