"""Intervals over tasks, or over sets of documents that belong together. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from sae_lm_eval.comparison.paired_statistics import Change, Stratum
from sae_lm_eval.comparison.resampling import exceeded
from sae_lm_eval.comparison.share_lost import ratio_bounds

# An interval over fewer tasks, or sets of documents, is not worth showing.
FEWEST_TASKS, FEWEST_CLUSTERS = 10, 10
NAN = float("nan")


def interval_over_clusters(drops: ArrayLike, weights: ArrayLike, *, level: float) -> tuple[float, float]:
    """Bounds of the weighted mean of the clusters' drops, if the clusters are drawn from many like them.

    `drops` and `weights` have an entry a cluster; the weights are those of the group. The variance is the bias-reduced
    cluster-robust one (CR2) of a weighted mean, and the degrees of freedom are Bell and McCaffrey's (2002, Survey
    Methodology 28:169-181), both under clusters of equal variance: with equal weights it is Student's interval of the
    mean. Bounds are nan for fewer than two clusters, and where all drops are equal.
    """
    estimate = _mean_over_clusters(drops, weights)
    if estimate is None:
        return NAN, NAN
    mean, error, freedom = estimate
    half = float(stats.t.ppf(0.5 + level / 2, freedom) * error)
    return mean - half, mean + half


def above_zero_p(values: ArrayLike, weights: ArrayLike) -> float:
    """One-sided p of the clusters' weighted mean, as in `interval_over_clusters`; nan where that is undefined."""
    estimate = _mean_over_clusters(values, weights)
    return NAN if estimate is None else float(stats.t.sf(estimate[0] / estimate[1], estimate[2]))


def _mean_over_clusters(values: ArrayLike, weights: ArrayLike) -> tuple[float, float, float] | None:
    """Mean, standard error and degrees of freedom; None where `interval_over_clusters` is undefined."""
    drop, weight = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if len(drop) < 2:
        return None
    weight = weight / weight.sum()
    top = int(weight.argmax())
    rest = np.delete(weight, top)
    if rest.sum() <= 1e-12:
        return None
    own = _own_variances(weight, top)
    # From the heaviest cluster's drop, which the mean may hardly differ from.
    beyond = drop - drop[top]
    mean = float(drop[top] + weight @ beyond)
    variance = float((weight**2 / own) @ (beyond - weight @ beyond) ** 2)
    if variance <= (1e-12 * max(1.0, float(np.abs(drop).max()))) ** 2:
        return None
    return mean, float(np.sqrt(variance)), degrees_of_freedom(weight)


def degrees_of_freedom(weight: np.ndarray) -> float:
    """Bell and McCaffrey's for the mean of clusters of equal variance whose weights sum to 1: from 1 to n - 1.

    Squared trace over squared norm of the matrix with `weight`^2 on its diagonal and, off it,
    sqrt(s_i s_j) (|weight|^2 - weight_i - weight_j), where s_i = weight_i^2 / (1 - 2 weight_i + |weight|^2). The pairs
    of the heaviest cluster are summed one by one, since they cancel where it has nearly all the weight; those of the
    others, which have at most half of it each, are summed without room for each pair.
    """
    top = int(weight.argmax())
    share, rest = weight**2 / _own_variances(weight, top), np.delete(weight, top)
    heaviest, square = share[top], weight @ weight
    beside = np.delete(share, top)
    with_top = 2 * heaviest * float(beside @ (rest @ rest - weight[top] * rest.sum() - rest) ** 2)
    whole, once, twice = (float(beside @ rest**power) for power in (0, 1, 2))
    apart = (square * whole) ** 2 + 2 * twice * whole - 4 * square * once * whole + 2 * once**2
    apart -= float(beside**2 @ (square - 2 * rest) ** 2)
    freedom = square**2 / (float((weight**4).sum()) + with_top + max(apart, 0.0))
    return float(np.clip(freedom, 1, len(weight) - 1))


def _own_variances(weight: np.ndarray, top: int) -> np.ndarray:
    """Of each cluster's residual, in units of a cluster's variance; `top` is the heaviest, for which 1 - w cancels."""
    rest = np.delete(weight, top)
    own = 1 - 2 * weight + weight @ weight
    own[top] = rest.sum() ** 2 + rest @ rest
    return own


def by_cluster(
    changes: Sequence[np.ndarray], weights: Sequence[float], labels: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean change and weight of each cluster; arrays go by task and document, a label may occur in several tasks."""
    shares = np.concatenate(
        [np.full(len(change), weight / len(change)) for change, weight in zip(changes, weights, strict=True)]
    )
    every = np.concatenate(list(labels))
    _, index = np.unique(every.astype(str), return_inverse=True)
    total = np.bincount(index, weights=shares)
    return np.bincount(index, weights=shares * np.concatenate(list(changes))) / total, total


def share_lost_over_clusters(
    drops: Sequence[np.ndarray],
    above: Sequence[np.ndarray],
    weights: Sequence[float],
    labels: Sequence[np.ndarray],
    *,
    level: float,
) -> tuple[float, float]:
    """Fieller's bounds of drop / (baseline - chance) over clusters; arrays go by task and document.

    The variance is that of a weighted mean of clusters with one degree of freedom less than there are, and the quantile
    Student's. Bounds are nan for fewer than two clusters, and where the baseline is not clearly above chance.
    """
    parts = [by_cluster(by_task, weights, labels) for by_task in (drops, above)]
    points, shares = np.column_stack([values for values, _ in parts]), parts[0][1]
    count = len(points)
    if count < 2:
        return NAN, NAN
    mean = shares @ points
    spread = (points - mean) * shares[:, None]
    quantile = float(stats.t.ppf(0.5 + level / 2, count - 1))
    return ratio_bounds(mean, spread.T @ spread * count / (count - 1), quantile=quantile)


def flipped_p(drops: np.ndarray, weights: np.ndarray, *, draws: int, rng: np.random.Generator) -> float:
    """Two-sided p: baseline and variant change places for each cluster as a whole. At least 1 / (draws + 1)."""
    parts = drops * weights
    null = np.concatenate(
        [(2 * rng.integers(0, 2, (min(1000, draws - at), len(parts))) - 1) @ parts for at in range(0, draws, 1000)]
    )
    return exceeded(null, float(parts.sum()))


def clustered_change(
    strata: Sequence[Stratum], labels: Sequence[np.ndarray], field: str, *, level: float, draws: int, seed: int
) -> Change:
    """The drop of an accuracy whose documents come in sets: interval and test are over the sets that a field tells.

    `labels` has the set of each document, by task; a set may lie in several tasks.
    """
    weights = [s.weight for s in strata]
    drops, shares = by_cluster([s.baseline - s.variant for s in strata], weights, labels)
    low, high = interval_over_clusters(drops, shares, level=level)
    p = flipped_p(drops, shares, draws=draws, rng=np.random.default_rng(seed))
    few = f"only {len(drops)} sets of documents: the interval may cover less than it says"
    undefined = "n/a: the sets of documents do not differ in what they lost, so that nothing tells how far others would"
    caution = undefined if np.isnan(low) else few if len(drops) < FEWEST_CLUSTERS else ""
    baseline, variant = (
        float(sum(s.weight * side.mean() for s, side in zip(strata, sides, strict=True)))
        for sides in ([s.baseline for s in strata], [s.variant for s in strata])
    )
    how = f"by {field}"
    return Change(
        *(baseline, variant, baseline - variant, low, high),
        *(f"cluster-robust, {how}", p, f"permutation, {how}", caution),
    )
