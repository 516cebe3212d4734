"""Where two texts part, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def parting(ids: Sequence[int], others: Sequence[int]) -> int | None:
    """The first index at which two texts differ, as far as both go; None where they do not."""
    return next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), None)


def share_together(times: Sequence[int], has_parted: Sequence[bool]) -> dict[int, float]:
    """The share of pairs of texts that are still the same behind 1, 2, 4, ... tokens, up to the longest.

    `times` are the numbers, from 1 on, of the first token at which a pair differs, or of its last where it never does.
    Such a pair leaves the sample at its end (Kaplan & Meier 1958).
    """
    from statsmodels.duration.survfunc import SurvfuncRight

    longest = max(times, default=0)
    at = [2**power for power in range(longest.bit_length())]
    if not any(has_parted):
        return dict.fromkeys(at, 1.0)
    curve = SurvfuncRight(np.asarray(times, dtype=float), np.asarray(has_parted, dtype=int))
    survival = np.concatenate([[1.0], curve.surv_prob])
    return {time: float(survival[np.searchsorted(curve.surv_times, time, side="right")]) for time in at}
