"""How large a drop a comparison of so many questions could have seen. Neither torch nor lm_eval."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

SIZE, POWER = 0.05, 0.8


def detectable_by_width(half: float, level: float) -> float:
    """The drop that a test at 5% sees with a probability of 80%, by half the width of an interval at `level`."""
    error = half / float(stats.norm.ppf(0.5 + level / 2))
    return float(stats.norm.ppf(1 - SIZE / 2) + stats.norm.ppf(POWER)) * error


def detectable_drop(weight: ArrayLike, changed: ArrayLike, n: ArrayLike) -> float:
    """The drop (a fraction) that a two-sided McNemar test at 5% sees with a probability of 80%.

    `weight`, `changed` (answers that were lost or gained) and `n` have an entry a task. The share of answers that
    change is taken as observed (Connor 1987, Biometrics 43:207-211); a drop cannot be larger than that share, so where
    it would have to be, every change is taken for a loss. nan where no drop would be seen.
    """
    weight, changed, n = (np.asarray(values, dtype=float) for values in (weight, changed, n))
    below, above = float(stats.norm.ppf(1 - SIZE / 2)), float(stats.norm.ppf(POWER))
    share, scale = float(weight @ (changed / n)), float((weight**2 / n).sum())
    null = float((weight**2 * changed / n**2).sum())
    spare = 1 - scale * (below**2 - above**2)
    drop = np.sqrt(null) * (below + above * np.sqrt(max(spare, 0.0))) / (1 + above**2 * scale)
    if drop >= share:
        # All changes are losses: share and drop are the same unknown.
        if scale * below**2 >= 1:
            return float("nan")
        root: Any = optimize.brentq(lambda drop: drop - scale * (below + above * np.sqrt(1 - drop)) ** 2, 0.0, 1.0)
        drop = float(root)
    return float(drop) if drop <= 1 else float("nan")
