"""Two sets of scores of the same documents -> the drop, with its uncertainty. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from sae_lm_eval.comparison.resampling import chunks, exceeded, ratio_of_sums, resampled_ratios

# A task of fewer documents has no bootstrap-t interval; one of fewer than FEW has one that may cover too little.
FEWEST, FEW = 5, 20
# With fewer documents in a task, Bonett and Price's interval was made for what it is not given.
SMALL_TASK = 4
ALIKE = "every document changed alike, so that nothing tells how far another would"
TOO_FEW_CHANGED = "too few documents changed"
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
        solution: Any = optimize.brentq(lambda delta: score(delta) - level, left, right)
        return float(solution)

    edge = 1 - 1e-12
    low = -1.0 if score(-edge) <= z else root(z, -edge, estimate - 1e-12)
    high = 1.0 if score(edge) >= -z else root(-z, estimate + 1e-12, edge)
    return low, high


@dataclass(frozen=True)
class Stratum:
    """The documents of one task that both runs scored, in the same order; `weight` is the task's share of the group.

    `baseline` and `variant` are scores; where `sizes` is given they are sums over so many words or bytes. `scale`
    turns their mean (ratio of sums, with sizes) into the metric, as lm_eval's aggregation does, or with form="log"
    into the metric's logarithm.
    """

    weight: float
    baseline: np.ndarray
    variant: np.ndarray
    sizes: np.ndarray | None = None
    scale: Callable[[Any], Any] = lambda mean: mean
    form: Literal["plain", "log"] = "plain"

    def score(self, sums: Any) -> Any:
        """The metric or its logarithm, from the sum of the scores."""
        return self.scale(sums / (len(self.baseline) if self.sizes is None else self.sizes.sum()))


@dataclass(frozen=True)
class Change:
    """Scores, and `drop` = baseline - variant with its interval and two-sided p.

    The drop is in the metric's unit, or that of their logarithms where the strata have these. Bounds are nan where the
    interval is undefined. `caution` says why, or what is to be known of an interval that is defined.
    """

    baseline: float
    variant: float
    drop: float
    low: float
    high: float
    interval: str
    p: float
    test: str
    caution: str = ""


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
    p = accuracy_p(strata, draws=draws, rng=np.random.default_rng(seed))
    few = f"a task has {n.min()} of its documents, fewer than {SMALL_TASK}: the interval may be far too wide or narrow"
    caution = few if n.min() < SMALL_TASK else ""
    drop, interval = baseline - variant, "Bonett-Price, stratified"
    return Change(baseline, variant, drop, low, high, interval, p, "permutation", caution)


def accuracy_p(strata: Sequence[Stratum], *, draws: int, rng: np.random.Generator) -> float:
    """Two-sided p of weighted accuracies: each lost or gained document changes sides at random. At least
    1 / (draws + 1).
    """
    weight, n = np.array([s.weight for s in strata]), np.array([len(s.baseline) for s in strata])
    lost = np.array([((s.baseline == 1) & (s.variant == 0)).sum() for s in strata])
    gained = np.array([((s.baseline == 0) & (s.variant == 1)).sum() for s in strata])
    flipped = rng.binomial(lost + gained, 0.5, size=(draws, len(strata)))
    null = (2 * flipped - lost - gained) @ (weight / n)
    return exceeded(null, float(((lost - gained) / n) @ weight))


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
    to the Bootstrap, chapter 12); the percentile interval is too narrow for 50 documents of unlike length. The drop of
    strata in logarithms is that of the logarithms of the weighted means, which are nearer to linear. The test swaps
    baseline and variant of each document at random; its p is at least 1 / (draws + 1).

    Bounds are nan where a task has fewer than five documents, where the documents do not differ in how they changed,
    and where so few changed that resamples without any are no rarity.
    """
    rng = np.random.default_rng(seed)
    baseline, variant = (
        float(_total([s.score(getattr(s, side).sum()) for s in strata], strata)) for side in ("baseline", "variant")
    )
    p = continuous_p(strata, draws=draws, rng=rng)
    n = min(len(s.baseline) for s in strata)
    low = high = float("nan")
    if n < FEWEST:
        caution = f"n/a: a task has {n} documents, and the interval needs {FEWEST}"
    else:
        low, high, caution = _bootstrap_t(strata, baseline - variant, level, draws, rng)
        if not caution and n < FEW:
            caution = f"a task has {n} documents, fewer than {FEW}: the interval may cover less than it says"
    drop = baseline - variant
    if strata[0].form == "log":
        with np.errstate(over="ignore"):
            baseline, variant = float(np.exp(baseline)), float(np.exp(variant))
    return Change(baseline, variant, drop, low, high, "paired bootstrap-t", p, "permutation", caution)


def continuous_p(strata: Sequence[Stratum], *, draws: int, rng: np.random.Generator) -> float:
    """Two-sided p: baseline and variant of each document change places at random. At least 1 / (draws + 1)."""
    swapped = [_swapped(s, rng, draws) for s in strata]
    before, after = (_total([pair[side] for pair in swapped], strata) for side in (0, 1))
    seen = _total([s.score(s.baseline.sum()) for s in strata], strata)
    seen = seen - _total([s.score(s.variant.sum()) for s in strata], strata)
    return exceeded(before - after, float(seen))


def _bootstrap_t(
    strata: Sequence[Stratum], drop: float, level: float, draws: int, rng: np.random.Generator
) -> tuple[float, float, str]:
    """Bounds, nan where undefined, and then why."""
    linear = _linear(strata)
    error = np.sqrt(sum(float(ratio_of_sums(*each)[1]) for each in linear))
    off, variances = np.sum([resampled_ratios(*each, rng, draws) for each in linear], axis=0)
    size = sum(float(np.abs(values).max() / sizes.mean()) for values, sizes in linear)
    if error <= 1e-9 * size:
        return float("nan"), float("nan"), f"n/a: {ALIKE}"
    # A resample without spread says that a drop as far off as its own may be seen with any spread.
    flat = variances <= (1e-9 * size) ** 2
    t = np.where(flat, np.copysign(np.inf, off), off / np.sqrt(np.where(flat, 1.0, variances)))
    method = "linear" if np.isfinite(t).all() else "inverted_cdf"
    below, above = np.quantile(t, [0.5 - level / 2, 0.5 + level / 2], method=method)
    if not np.isfinite(below) or not np.isfinite(above):
        return float("nan"), float("nan"), f"n/a: {TOO_FEW_CHANGED}"
    return float(drop - above * error), float(drop - below * error), ""


def _total(scores: Sequence[Any], strata: Sequence[Stratum]) -> Any:
    """The group's metric, or its logarithm, from those of its tasks."""
    weights = np.array([s.weight for s in strata])
    if strata[0].form == "log":
        stacked = np.array(scores, dtype=float)
        return special.logsumexp(stacked, axis=0, b=weights.reshape(-1, *[1] * (stacked.ndim - 1)))
    return sum(weight * np.asarray(score) for weight, score in zip(weights, scores, strict=True))


def mean_change(strata: Sequence[Stratum], *, level: float) -> tuple[float, float, float]:
    """Weighted mean of variant - baseline, with Student's interval.

    Bounds are nan where a task has one document, or where all documents changed alike.
    """
    changes = [s.variant - s.baseline for s in strata]
    mean = float(sum(s.weight * change.mean() for s, change in zip(strata, changes, strict=True)))
    if equally_weighted(strata):
        changes = [np.concatenate(changes)]
    weight = [1.0] if len(changes) == 1 else [s.weight for s in strata]
    if min(map(len, changes)) < 2:
        return mean, float("nan"), float("nan")
    parts = np.array([w**2 * c.var(ddof=1) / len(c) for w, c in zip(weight, changes, strict=True)])
    if np.sqrt(parts.sum()) <= 1e-9 * max(float(np.abs(change).max()) for change in changes):
        return mean, float("nan"), float("nan")
    # Welch's and Satterthwaite's degrees of freedom.
    freedom = parts.sum() ** 2 / (parts**2 / [len(c) - 1 for c in changes]).sum()
    half = float(stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(parts.sum()))
    return mean, mean - half, mean + half


def _linear(strata: Sequence[Stratum]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each task values and sizes by document: near what was seen, the drop moves as the sum over tasks of the
    sum of values over the sum of sizes.
    """
    terms = []
    sizes = [np.ones(len(s.baseline)) if s.sizes is None else s.sizes for s in strata]
    slopes = [_slopes([getattr(s, side) for s in strata], sizes, strata) for side in ("baseline", "variant")]
    for s, size, before, after in zip(strata, sizes, *slopes, strict=True):
        terms.append((before * s.baseline - after * s.variant, size))
    return terms


def _slopes(values: Sequence[np.ndarray], sizes: Sequence[np.ndarray], strata: Sequence[Stratum]) -> list[Any]:
    """How much the group's metric, or its logarithm, moves with the mean of each of its tasks."""
    means = [value.sum() / size.sum() for value, size in zip(values, sizes, strict=True)]
    steps = [1e-5 * max(abs(mean), 1.0) for mean in means]
    slopes = [
        (s.scale(mean + step) - s.scale(mean - step)) / (2 * step)
        for s, mean, step in zip(strata, means, steps, strict=True)
    ]
    shares = np.array([s.weight for s in strata])
    if strata[0].form == "log":
        logs = np.log(shares) + [s.scale(mean) for s, mean in zip(strata, means, strict=True)]
        shares = special.softmax(logs)
    return list(shares * np.array(slopes))


def _swapped(stratum: Stratum, rng: np.random.Generator, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of either side where baseline and variant change places at random."""
    n, scores = len(stratum.baseline), []
    before, after = stratum.baseline.sum(), stratum.variant.sum()
    for size in chunks(draws, n):
        moved = rng.integers(0, 2, (size, n)) @ (stratum.variant - stratum.baseline)
        scores.append((stratum.score(before + moved), stratum.score(after - moved)))
    first, second = (np.concatenate(parts) for parts in zip(*scores, strict=True))
    return first, second
