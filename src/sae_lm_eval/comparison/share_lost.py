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
    added = 1 / len(strata)
    mean, covariance = np.zeros(2), np.zeros((2, 2))
    for s, level_of in zip(strata, chance, strict=True):
        usual = float(level_of.mean())
        extra = np.array([[1, 1 - usual], [-1, -usual]])
        points = np.vstack([np.column_stack([s.baseline - s.variant, s.baseline - level_of]), extra])
        weights = np.r_[np.ones(len(s.baseline)), added, added]
        share = weights / weights.sum()
        centre = share @ points
        mean += s.weight * centre
        spread = (points - centre).T @ ((points - centre) * share[:, None])
        covariance += s.weight**2 * spread / weights.sum()
    z = float(stats.norm.ppf(0.5 + level / 2))
    (drop, above), ((drops, both), (_, aboves)) = mean, z**2 * covariance
    square, linear, constant = above**2 - aboves, drop * above - both, drop**2 - drops
    if above <= 0 or square <= 0:
        return NAN, NAN
    root = float(np.sqrt(max(linear**2 - square * constant, 0.0)))
    return float((linear - root) / square), float((linear + root) / square)
