"""Two sets of answers to the same questions -> the drop, with its uncertainty. Neither torch nor lm_eval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

# Below so many questions whose answer changed, the exact test is used in the place of the asymptotic one.
FEW_CHANGED = 25


@dataclass(frozen=True)
class Drop:
    """How accuracy changed from the baseline to a variant on `n` questions that both answered.

    `drop`, `low` and `high` are percentage points, positive where the variant is worse; `lost` questions went from
    right to wrong, `gained` ones from wrong to right; `p` is McNemar's, two-sided.
    """

    n: int
    baseline: float
    variant: float
    drop: float
    low: float
    high: float
    lost: int
    gained: int
    p: float


def paired_drop(baseline: ArrayLike, variant: ArrayLike, *, level: float = 0.95) -> Drop:
    """The drop in accuracy between right/wrong answers to the same questions, in the same order.

    The interval is Tango's score interval for a difference of paired proportions (Tango 1998, Statistics in
    Medicine 17:891-908); the test is McNemar's, exact where fewer than 25 answers changed.

    Raises `ValueError` where the two differ in length or are empty.
    """
    before, after = np.asarray(baseline, dtype=bool), np.asarray(variant, dtype=bool)
    if before.shape != after.shape or before.ndim != 1 or not before.size:
        raise ValueError(f"Paired answers must be two lists of one length, not {before.shape} and {after.shape}.")
    n = before.size
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    low, high = tango_interval(lost, gained, n, level=level)
    return Drop(
        n=n,
        baseline=float(before.mean()),
        variant=float(after.mean()),
        drop=100 * (lost - gained) / n,
        low=100 * low,
        high=100 * high,
        lost=lost,
        gained=gained,
        p=mcnemar(lost, gained),
    )


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p of McNemar's test, from the numbers of changed answers; 1 where none changed."""
    from statsmodels.stats.contingency_tables import mcnemar as test

    if lost + gained == 0:
        return 1.0
    exact = lost + gained < FEW_CHANGED
    result: Any = test([[0, lost], [gained, 0]], exact=exact, correction=False)
    return float(result.pvalue)


def tango_interval(lost: int, gained: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Bounds of the difference (lost - gained) / n: where the score statistic meets the normal quantile."""
    z = float(stats.norm.ppf(0.5 + level / 2))
    estimate = (lost - gained) / n

    def score(delta: float) -> float:
        # The constrained estimate of the probability of gaining, given that the difference is delta.
        a, b, c = 2 * n, -lost - gained + (2 * n - lost + gained) * delta, -gained * delta * (1 - delta)
        gain = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * gain + delta * (1 - delta))
        return (lost - gained - n * delta) / np.sqrt(max(variance, 1e-300))

    def root(level: float, left: float, right: float) -> float:
        found: Any = optimize.brentq(lambda delta: score(delta) - level, left, right)
        return float(found)

    edge = 1 - 1e-12
    low = -1.0 if score(-edge) <= z else root(z, -edge, estimate - 1e-12)
    high = 1.0 if score(edge) >= -z else root(-z, estimate + 1e-12, edge)
    return low, high
