"""What share of a drop comes back, or is left, with the error in a class of places. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sae_lm_eval.comparison.paired_statistics import ALIKE, FEWEST, paired_drop
from sae_lm_eval.comparison.resampling import ratio_of_sums
from sae_lm_eval.comparison.share_lost import NAN, fieller

ACCURACY, MARGIN, KL = "accuracy", "margin", "kl"
MISSED = "missed"  # the division of an error by latents that are just not active
UNITS = {ACCURACY: "pp", MARGIN: "nats", KL: "nats/token"}
NOT_DROPPED = "the drop does not exclude 0"
NO_MARGIN = "no margins: the right choice is not known"
TOO_FEW = f"fewer than {FEWEST} documents"


@dataclass(frozen=True)
class IntervalEstimate:
    """A value with its interval; bounds are nan where they are undefined."""

    value: float
    low: float
    high: float


UNDEFINED = IntervalEstimate(NAN, NAN, NAN)


@dataclass(frozen=True, eq=False)
class PairedLosses:
    """What each document lost by a measure, in one order: `baseline` less what it has with a patch, by the patch's key.

    Of accuracy they are -1, 0 or 1; of the margin and of KL nats. Documents without a value are nan. `sizes` are the
    scored tokens of each document where the mean is one over tokens, as of KL.
    """

    measure: str
    baseline: np.ndarray
    by_key: Mapping[str, np.ndarray]
    sizes: np.ndarray | None = None

    def by_document(self, key: str) -> np.ndarray:
        """Losses in the measure's own unit: of KL nats per scored token."""
        return self.by_key[key] if self.sizes is None else self.by_key[key] / self.sizes

    def restricted(self, chosen: np.ndarray) -> PairedLosses:
        """Some documents, of which those with a value."""
        keep = chosen & np.all([~np.isnan(loss) for loss in self.by_key.values()], axis=0)
        sizes = None if self.sizes is None else self.sizes[keep]
        losses = {key: loss[keep] for key, loss in self.by_key.items()}
        return PairedLosses(self.measure, self.baseline[keep], losses, sizes)

    def drop(self, key: str, level: float) -> IntervalEstimate:
        """Mean loss: of accuracy in pp with Tango's interval, else a ratio of sums with Student's.

        Bounds are nan for fewer than two documents, and where all changed alike.
        """
        loss = self.by_key[key]
        if not len(loss):
            return UNDEFINED
        if self.measure == ACCURACY:
            estimate = paired_drop(self.baseline, self.baseline - loss, level=level)
            return IntervalEstimate(estimate.drop, estimate.low, estimate.high)
        sizes = np.ones(len(loss)) if self.sizes is None else self.sizes
        if len(loss) < 2:
            return IntervalEstimate(float(loss.sum() / sizes.sum()), NAN, NAN)
        mean, variance = map(float, ratio_of_sums(loss, sizes))
        if np.sqrt(variance) <= 1e-9 * float(np.abs(loss / sizes).max()):
            return IntervalEstimate(mean, NAN, NAN)
        half = float(stats.t.ppf(0.5 + level / 2, len(loss) - 1) * np.sqrt(variance))
        return IntervalEstimate(mean, mean - half, mean + half)

    def share(self, numerator: np.ndarray, key: str, level: float) -> IntervalEstimate:
        """Mean numerator / mean loss of `key`, with Fieller's interval.

        As in Bonett and Price's interval of a drop in accuracy, one lost and one gained document are added: once with
        the numerator of the same sign, once with none, half of each. The ratio stays as it is.
        """
        loss, n = self.by_key[key], len(numerator)
        further, weight, wider = np.zeros((0, 2)), 0.0, np.sqrt(n / (n - 1))  # Student's variance is over n - 1
        if self.measure == ACCURACY:
            further, weight, wider = np.array([[1, 1], [-1, -1], [0, 1], [0, -1]], dtype=float), 0.5, 1.0
        quantile = float(stats.t.ppf(0.5 + level / 2, n - 1) * wider)
        low, high = fieller([(1.0, np.column_stack([numerator, loss]), further, weight)], quantile=quantile)
        return IntervalEstimate(float(numerator.sum() / loss.sum()), low, high)


def why_no_share(losses: PairedLosses, whole: str, level: float) -> str | None:
    """Why no share of the drop can be stated; None where it can: its interval lies above 0."""
    if losses.measure == MARGIN and not len(losses.baseline):
        return NO_MARGIN
    if len(losses.baseline) < FEWEST:
        return TOO_FEW
    drop = losses.drop(whole, level)
    if drop.value > 0 and np.isnan(drop.low):
        return ALIKE
    return None if drop.low > 0 else NOT_DROPPED


def shares(
    losses: PairedLosses, whole: str, restored: Sequence[str], alone: Sequence[str], level: float
) -> tuple[IntervalEstimate, IntervalEstimate]:
    """The shares of the drop of `whole` that come back with the errors of classes put back, and that they make alone.

    Of several classes each share is a sum of theirs, which is 1 where they do not interact.
    """
    nothing = np.zeros(len(losses.baseline))
    back = sum((losses.by_key[whole] - losses.by_key[key] for key in restored), nothing)
    left = sum((losses.by_key[key] for key in alone), nothing)
    return losses.share(back, whole, level), losses.share(left, whole, level)
