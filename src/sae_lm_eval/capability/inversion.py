"""What compute buys a score: the inverse of a curve of scores by compute, with documents resampled jointly.

The models' mean scores on the same documents are made monotone in log compute (isotonic regression, as for checkpoints
in `scaling.curve_estimates`), and the spliced model's score is looked up on them. Each draw takes documents with
replacement, the same ones of every model, so that what they have in common drops out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sae_lm_eval.comparison.resampling import document_counts
from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling.family import MonotoneCurve, monotone_curve

FEWEST_MEMBERS, FEWEST_DOCUMENTS = 3, 10
DRAWS = 1000  # resampled curves; each costs a regression


@dataclass(frozen=True, eq=False)
class FamilyScores:
    """Scores of a family on the same documents: `members` (models, documents) by rising `compute`, higher is better.

    `own` is the place of the original among them. `spliced` (documents) are those of the original with a dictionary.
    `weights` (documents) add to 1; documents are resampled within each of `strata`, arrays of their places, or whole
    `sets` of them (documents) where documents belong together.
    """

    compute: np.ndarray
    members: np.ndarray
    own: int
    spliced: np.ndarray
    weights: np.ndarray
    strata: Sequence[np.ndarray]
    sets: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class EquivalentCompute:
    """The compute that buys the spliced model's score, as a fraction of the original's; None for the `reason`.

    `bound` is what can be said where the curve ends, such as "< 0.1". A side of the interval is None where it is
    unbounded; the interval covers the documents, and not what another training of the members would have given.
    """

    fraction: float | None = None
    low: float | None = None
    high: float | None = None
    bound: str | None = None
    reason: str | None = None
    flags: tuple[str, ...] = ()


def equivalent_compute(
    scores: FamilyScores, *, level: float = 0.95, draws: int = DRAWS, rng: np.random.Generator | int = 0
) -> EquivalentCompute:
    """The fraction of the original's compute after which the curve has the spliced model's score.

    Refused where too few models or documents are known, and where the curve does not clearly rise up to the original:
    with the documents resampled, the original's score less the first model's is not above 0. Bounded where it ends.
    """
    count, documents = scores.members.shape
    if count < FEWEST_MEMBERS:
        return EquivalentCompute(reason=f"a curve needs {FEWEST_MEMBERS} models, and {count} were measured")
    if few := too_few(documents, scores.sets):
        return EquivalentCompute(reason=few)
    means = scores.members @ scores.weights
    drop = float((scores.members[scores.own] - scores.spliced) @ scores.weights)
    resampled = _resampled(scores, draws, np.random.default_rng(rng))
    rise = resampled[:, scores.own] - resampled[:, 0]
    tail = (1 - level) / 2
    if np.quantile(rise, tail) <= 0:
        lowest, highest = np.quantile(rise, [tail, 1 - tail])
        return EquivalentCompute(
            reason=f"flat curve: the score rises by {means[scores.own] - means[0]:.3g} ({lowest:.3g} to {highest:.3g})"
        )
    equivalent = _placed(scores, means, drop)
    if equivalent.fraction is None:
        return equivalent
    logs = np.array([log_share_of_compute(scores, row[:-1], float(row[-1])) for row in resampled])
    low, high = np.quantile(logs, [tail, 1 - tail], method="inverted_cdf")
    return replace(equivalent, low=_finite_exp(low), high=_finite_exp(high), flags=_pooled(means))


def _placed(scores: FamilyScores, means: np.ndarray, drop: float) -> EquivalentCompute:
    log = log_share_of_compute(scores, means, drop)
    if math.isfinite(log):
        return EquivalentCompute(fraction=math.exp(log))
    curve, log_own, _ = _curve(scores, means)
    below = log < 0
    edge = math.exp(float(curve.log_compute[0 if below else -1]) - log_own)
    side = "below the first" if below else "above the last"
    return EquivalentCompute(
        bound=f"{'<' if below else '>'} {edge:.3g}", reason=f"the score is {side} model's on the curve"
    )


def _curve(scores: FamilyScores, means: np.ndarray) -> tuple[MonotoneCurve, float, float]:
    """The curve of what lacks to the greatest score, and the original's log compute and lack on it.

    An original that is the last member keeps its own compute, so that no drop is a fraction of 1.
    """
    last = scores.own == len(means) - 1
    curve = monotone_curve(scores.compute, 1 + means.max() - means, end="own" if last else "pooled")
    if last:
        return curve, float(curve.log_compute[-1]), curve.best
    lack = float(np.interp(math.log(scores.compute[scores.own]), curve.log_compute, curve.loss))
    return curve, float(curve.log_compute_at(lack)), lack


def log_share_of_compute(scores: FamilyScores, means: np.ndarray, drop: float) -> float:
    """log of the fraction; -inf below the curve's first model, inf above its last."""
    try:
        curve, log_own, lack = _curve(scores, means)
    except UserError:  # these scores do not rise at all: a draw that bounds nothing
        return -math.inf if drop > 0 else math.inf
    return float(curve.log_compute_at(lack + drop)) - log_own


def _resampled(scores: FamilyScores, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, models + 1): each model's mean over resampled documents, and in the last column the drop."""
    lost = scores.members[scores.own] - scores.spliced
    weighted = np.vstack([scores.members, lost]) * scores.weights
    if scores.sets is not None:
        return means_over_sets(weighted, scores.weights, scores.sets, draws, rng)
    return resampled_means(weighted, scores.strata, draws, rng)


def too_few(documents: int, sets: np.ndarray | None) -> str | None:
    """Why they cannot be resampled, or None."""
    count, what = (documents, "documents") if sets is None else (len(set(sets)), "sets of documents")
    return f"{count} {what} are too few to be resampled" if count < FEWEST_DOCUMENTS else None


def means_over_sets(
    weighted: np.ndarray, weights: np.ndarray, sets: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """(draws, rows): as `resampled_means`, of whole sets drawn with replacement, by the weight of those drawn."""
    _, index = np.unique(sets.astype(str), return_inverse=True)
    totals = np.array([np.bincount(index, weights=row) for row in (*weighted, weights)])
    drawn = resampled_means(totals, [np.arange(totals.shape[1])], draws, rng)
    return drawn[:, :-1] / drawn[:, -1:]


def resampled_means(
    weighted: np.ndarray, strata: Sequence[np.ndarray], draws: int, rng: np.random.Generator
) -> np.ndarray:
    """(draws, rows): sums of `weighted` (rows, documents) over documents drawn with replacement within each stratum."""
    table = weighted.T
    total = np.zeros((draws, table.shape[1]))
    for places in strata:
        start = 0
        for counts in document_counts(len(places), draws, rng):
            total[start : start + len(counts)] += counts @ table[places]
            start += len(counts)
    return total


def knots(scores: FamilyScores) -> tuple[np.ndarray, np.ndarray]:
    """The curve that fractions are read from: shares of the original's compute, and scores; empty where none rises."""
    means = scores.members @ scores.weights
    try:
        curve, log_own, _ = _curve(scores, means)
    except UserError:
        return np.empty(0), np.empty(0)
    return np.exp(curve.log_compute - log_own), 1 + means.max() - curve.loss


def _pooled(means: np.ndarray) -> tuple[str, ...]:
    falls = int((np.diff(means) < 0).sum())
    return (f"the score falls with compute at {falls} of {len(means) - 1} steps, which are pooled",) if falls else ()


def _finite_exp(value: float) -> float | None:
    return math.exp(value) if math.isfinite(value) else None
