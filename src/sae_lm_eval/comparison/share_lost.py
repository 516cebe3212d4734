"""The share of the accuracy above chance that a variant lost, with its interval. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from sae_lm_eval.comparison.paired_statistics import Stratum, equally_weighted

NAN = float("nan")


def share_lost_interval(
    strata: Sequence[Stratum], chance: Sequence[np.ndarray], *, level: float
) -> tuple[float, float]:
    """Bounds of drop / (baseline - chance): Fieller's interval of a ratio of paired means.

    `chance` has for each task the right choices / choices of its documents. The shares theta for which the mean of
    (drop - theta (baseline - chance)) over documents lies within its normal quantile of 0 are those between the bounds
    (Fieller 1954, Journal of the Royal Statistical Society B 16:175-185). As in Bonett and Price's interval, one lost
    and one gained document are added, spread over the tasks: without them the interval has no width where no answer
    changed. Both bounds are nan where the baseline is not clearly above chance, since no share is then refuted.
    """
    if equally_weighted(strata):
        before, after = (np.concatenate([getattr(s, side) for s in strata]) for side in ("baseline", "variant"))
        strata, chance = [Stratum(1.0, before, after)], [np.concatenate(chance)]
    added, parts = 1 / len(strata), []
    for s, level_of in zip(strata, chance, strict=True):
        usual = float(level_of.mean())
        points = np.column_stack([s.baseline - s.variant, s.baseline - level_of])
        parts.append((s.weight, points, np.array([[1, 1 - usual], [-1, -usual]]), added))
    return fieller(parts, quantile=float(stats.norm.ppf(0.5 + level / 2)))


def fieller(parts: Sequence[tuple[float, np.ndarray, np.ndarray, float]], *, quantile: float) -> tuple[float, float]:
    """Bounds of the ratio of two means, taken over strata: (weight, points (n, 2), further points, the weight of each).

    The points are numerators and denominators. Both bounds are nan where the denominator is not clearly above 0.
    """
    mean, covariance = np.zeros(2), np.zeros((2, 2))
    for weight, seen, further, of_further in parts:
        points = np.vstack([seen, further])
        counts = np.r_[np.ones(len(seen)), np.full(len(further), of_further)]
        share = counts / counts.sum()
        centre = share @ points
        mean += weight * centre
        spread = (points - centre).T @ ((points - centre) * share[:, None])
        covariance += weight**2 * spread / counts.sum()
    return ratio_bounds(mean, covariance, quantile=quantile)


def ratio_bounds(mean: np.ndarray, covariance: np.ndarray, *, quantile: float) -> tuple[float, float]:
    """Bounds of the first of two means (2,) divided by the second, by the covariance (2, 2) of both."""
    (above, below), ((aboves, both), (_, belows)) = mean, quantile**2 * covariance
    square, linear, constant = below**2 - belows, above * below - both, above**2 - aboves
    if below <= 0 or square <= 0:
        return NAN, NAN
    root = float(np.sqrt(max(linear**2 - square * constant, 0.0)))
    return float((linear - root) / square), float((linear + root) / square)
