"""Two sets of scores of the same documents -> the drop, with its uncertainty. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Stratum:
    """The documents of one task that both runs scored, in the same order; `weight` is the task's share of the group.

    `baseline` and `variant` are scores; where `sizes` is given they are sums over so many words or bytes. `scale`
    turns their mean (ratio of sums, with sizes) into the metric, as lm_eval's aggregation does.
    """

    weight: float
    baseline: np.ndarray
    variant: np.ndarray
    sizes: np.ndarray | None = None
    scale: Callable[[Any], Any] = lambda mean: mean

    def score(self, sums: Any) -> Any:
        """The metric, from the sum of the scores."""
        return self.scale(sums / (len(self.baseline) if self.sizes is None else self.sizes.sum()))


@dataclass(frozen=True)
class Change:
    """Scores, and `drop` = baseline - variant with its interval and two-sided p, in the metric's unit."""

    baseline: float
    variant: float
    drop: float
    low: float
    high: float
    interval: str
    p: float
    test: str


def equally_weighted(strata: Sequence[Stratum]) -> bool:
    """Whether every document counts alike, whatever its task."""
    per_document = [stratum.weight / len(stratum.baseline) for stratum in strata]
    return bool(np.allclose(per_document, per_document[0], rtol=1e-9))


def accuracy_change(strata: Sequence[Stratum], *, level: float, draws: int, seed: int) -> Change:
    """The drop of an accuracy (a fraction), its tasks weighted.

    Where every document counts alike this is `paired_drop` on all of them. Otherwise McNemar's test and Tango's
    interval do not apply: the test flips the changed answers of each task at random, and the interval is Bonett and
    Price's adjusted Wald interval (2012, Journal of Educational and Behavioral Statistics 37:479-488), its one
    lost and one gained document spread over the tasks, its variance the weighted sum of the tasks'. The bootstrap's
    interval has no width where no answer changed, and too little where few did.
    """
    baseline = float(sum(s.weight * s.baseline.mean() for s in strata))
    variant = float(sum(s.weight * s.variant.mean() for s in strata))
    if equally_weighted(strata):
        before, after = (np.concatenate([getattr(s, side) for s in strata]) for side in ("baseline", "variant"))
        drop = paired_drop(before, after, level=level)
        test = "McNemar, exact" if drop.lost + drop.gained < FEW_CHANGED else "McNemar"
        return Change(baseline, variant, drop.drop / 100, drop.low / 100, drop.high / 100, "Tango", drop.p, test)
    weight, n = np.array([s.weight for s in strata]), np.array([len(s.baseline) for s in strata])
    lost = np.array([((s.baseline == 1) & (s.variant == 0)).sum() for s in strata])
    gained = np.array([((s.baseline == 0) & (s.variant == 1)).sum() for s in strata])
    low, high = bonett_price_interval(weight, lost, gained, n, level=level)
    flipped = np.random.default_rng(seed).binomial(lost + gained, 0.5, size=(draws, len(strata)))
    null = (2 * flipped - lost - gained) @ (weight / n)
    p = _exceeded(null, float(((lost - gained) / n) @ weight))
    return Change(baseline, variant, baseline - variant, low, high, "Bonett-Price, stratified", p, "permutation")


def bonett_price_interval(
    weight: ArrayLike, lost: ArrayLike, gained: ArrayLike, n: ArrayLike, *, level: float = 0.95
) -> tuple[float, float]:
    """Bounds of the sum of weight * (lost - gained) / n over tasks; all arguments have an entry a task."""
    weight, lost, gained, n = (np.asarray(values, dtype=float) for values in (weight, lost, gained, n))
    added = 1 / len(n)
    more, fewer, n = (lost + added) / (n + 2 * added), (gained + added) / (n + 2 * added), n + 2 * added
    centre = float(weight @ (more - fewer))
    half = stats.norm.ppf(0.5 + level / 2) * np.sqrt(weight**2 @ ((more + fewer - (more - fewer) ** 2) / n))
    return max(-1.0, float(centre - half)), min(1.0, float(centre + half))


def continuous_change(strata: Sequence[Stratum], *, level: float, draws: int, seed: int) -> Change:
    """The drop of any other metric: paired bootstrap-t over the documents of each task, and a permutation test.

    The bootstrap studentises the drop, taken as linear in the runs' means (Efron and Tibshirani 1993, An Introduction
    to the Bootstrap, chapter 12); the percentile interval is too narrow for 50 documents of unlike length. The test
    swaps baseline and variant of each document at random; its p is at least 1 / (draws + 1). Bounds are nan where a
    task has one document.
    """
    rng = np.random.default_rng(seed)
    scores = [[s.weight * s.score(side.sum()) for side in (s.baseline, s.variant)] for s in strata]
    baseline, variant = (float(total) for total in np.sum(scores, axis=0))
    null = np.sum([s.weight * _swapped(s, rng, draws) for s in strata], axis=0)
    linear = [_linear(s) for s in strata]
    low = high = float("nan")
    if min(len(values) for values, _ in linear) > 1:
        error = np.sqrt(sum(float(_ratio(*each)[1]) for each in linear))
        off, variances = np.sum([_resampled(*each, rng, draws) for each in linear], axis=0)
        off, variances = off[variances > 0], variances[variances > 0]
        quantiles = [0.5 - level / 2, 0.5 + level / 2]
        below, above = np.quantile(off / np.sqrt(variances), quantiles) if len(off) else (0.0, 0.0)
        low, high = float(baseline - variant - above * error), float(baseline - variant - below * error)
    drop = baseline - variant
    return Change(baseline, variant, drop, low, high, "paired bootstrap-t", _exceeded(null, drop), "permutation")


def mean_change(strata: Sequence[Stratum], *, level: float) -> tuple[float, float, float]:
    """Weighted mean of variant - baseline, with Student's interval; nan bounds where a task has one document."""
    changes = [s.variant - s.baseline for s in strata]
    mean = float(sum(s.weight * change.mean() for s, change in zip(strata, changes, strict=True)))
    if equally_weighted(strata):
        changes = [np.concatenate(changes)]
    weight = [1.0] if len(changes) == 1 else [s.weight for s in strata]
    if min(map(len, changes)) < 2:
        return mean, float("nan"), float("nan")
    parts = np.array([w**2 * c.var(ddof=1) / len(c) for w, c in zip(weight, changes, strict=True)])
    if not parts.sum():
        return mean, mean, mean
    # Welch's and Satterthwaite's degrees of freedom.
    freedom = parts.sum() ** 2 / (parts**2 / [len(c) - 1 for c in changes]).sum()
    half = float(stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(parts.sum()))
    return mean, mean - half, mean + half


def _exceeded(null: np.ndarray, seen: float) -> float:
    """Two-sided Monte Carlo p, which counts what was seen as one of the draws."""
    tolerance = 1e-9 * max(abs(seen), 1e-12)
    return float(((np.abs(null) >= abs(seen) - tolerance).sum() + 1) / (len(null) + 1))


def _chunks(draws: int, n: int, *, most: int = 4_000_000) -> list[int]:
    """Sizes that add up to `draws`, of arrays with `n` columns that fit in memory."""
    size = max(1, most // n)
    return [min(size, draws - start) for start in range(0, draws, size)]


def _linear(stratum: Stratum) -> tuple[np.ndarray, np.ndarray]:
    """Values and sizes by document: near what was seen, the drop moves as the sum of values over the sum of sizes."""
    sizes = np.ones(len(stratum.baseline)) if stratum.sizes is None else stratum.sizes

    def of(values: np.ndarray) -> np.ndarray:
        mean = values.sum() / sizes.sum()
        step = 1e-5 * max(abs(mean), 1.0)
        return values * (stratum.scale(mean + step) - stratum.scale(mean - step)) / (2 * step)

    return stratum.weight * (of(stratum.baseline) - of(stratum.variant)), sizes


def _ratio(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of sums along the last axis, and its variance by the delta method (Cochran 1977, section 6.4)."""
    ratio = values.sum(-1) / sizes.sum(-1)
    rest = values - ratio[..., None] * sizes
    return ratio, rest.var(-1, ddof=1) / sizes.mean(-1) ** 2 / values.shape[-1]


def _resampled(
    values: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """By how far the ratio of each resample is off, and the variance that the resample gives it."""
    n, found = len(values), []
    for size in _chunks(draws, n):
        index = rng.integers(0, n, (size, n))
        found.append(_ratio(values[index], sizes[index]))
    ratios, variances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return ratios - values.sum() / sizes.sum(), variances


def _swapped(stratum: Stratum, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Drops where baseline and variant change places at random."""
    n, drops = len(stratum.baseline), []
    before, after = stratum.baseline.sum(), stratum.variant.sum()
    for size in _chunks(draws, n):
        moved = rng.integers(0, 2, (size, n)) @ (stratum.variant - stratum.baseline)
        drops.append(stratum.score(before + moved) - stratum.score(after - moved))
    return np.concatenate(drops)
