"""What a variant is called, wherever it is named: in messages, in results, and above a column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

BASELINE = "baseline"
# In the place of a mode: where the model itself is changed, and where it has an adapter and no dictionary.
EDIT, ADAPTER = "edit", "adapter"
OF_CROSS_LAYER = re.compile(r"(clt:.+layer_)(\d+)( \(.+\))?")  # and what is edited


def variant_name(dictionaries: Sequence[Any], splice: str | None, scale: float | None = None) -> str:
    """The names of its dictionaries, with the mode where it is not the usual one, and how much of the edit is made.

    Without dictionaries it is the baseline.
    """
    if not dictionaries:
        return BASELINE
    how = [] if splice in (None, "reconstruction", EDIT, ADAPTER) else [str(splice)]
    how += [] if scale in (None, 1) else [f"scale {scale:g}"]
    names = "+".join(_joined(dictionaries))
    return f"{names} ({', '.join(how)})" if how else names


def _joined(dictionaries: Sequence[Any]) -> list[str]:
    """The names, with one for successive layers of a cross-layer transcoder."""
    matches = [OF_CROSS_LAYER.fullmatch(str(name)) for name in dictionaries]
    runs = groupby(
        range(len(matches)), lambda at: (match[1], int(match[2]) - at, match[3]) if (match := matches[at]) else at
    )
    out = []
    for _, places in runs:
        first, *rest = places
        of_last = matches[rest[-1]] if rest else None
        of_first = matches[first]
        if of_first is not None and of_last is not None:
            out.append(f"{of_first[1]}{of_first[2]}-{of_last[2]}{of_first[3] or ''}")
        else:
            out.append(str(dictionaries[first]))
    return out
