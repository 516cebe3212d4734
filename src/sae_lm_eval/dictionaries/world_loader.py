"""Dictionaries of the embedded world."""

from __future__ import annotations

from pathlib import Path

from sae_lm_eval import world
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError


def world_dictionary(spec: SaeSpec) -> Path:
    if spec.revision is not None:
        raise UserError(f"The embedded world has no revisions: leave out @{spec.revision}.")
    return world.dictionary_path(spec.id or "")
