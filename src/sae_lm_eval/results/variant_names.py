"""What a variant is called, wherever it is named: in messages, in results, and above a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BASELINE = "baseline"
EDIT = "edit"  # in the place of a mode, where the model itself is changed


def variant_name(dictionaries: Sequence[Any], splice: str | None, scale: float | None = None) -> str:
    """The names of its dictionaries, with the mode where it is not the usual one, and how much of the edit is made.

    Without dictionaries it is the baseline.
    """
    if not dictionaries:
        return BASELINE
    how = [] if splice in (None, "reconstruction", EDIT) else [str(splice)]
    how += [] if scale in (None, 1) else [f"scale {scale:g}"]
    names = "+".join(map(str, dictionaries))
    return f"{names} ({', '.join(how)})" if how else names
