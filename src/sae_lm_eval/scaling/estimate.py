"""One estimate: a definition of effective compute on one curve, with its interval, flags and reasons.

Every definition on a law has one form. With R the reducible loss that the resource accounts for and s its
exponent, a rise Delta of the loss leaves the fraction (1 + Delta/R)^(-1/s) of the resource:

    effective compute, within the law     R = A N^-alpha + B D^-beta     s = alpha beta/(alpha+beta)
    effective compute, law at the loss    R = L - E                      s = gamma
    effective parameters, tokens fixed    R = A N^-alpha                 s = alpha
    effective tokens, parameters fixed    R = B D^-beta                  s = beta

Intervals: each draw resamples the documents behind Delta and draws the law's parameters jointly, as a
multivariate t. Delta enters exactly; the parameters enter through the gradient of the log fraction, because
drawn parameters of a short fit lie far outside the fit's ridge (coverage: docs/effective-compute.md).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling.delta import DeltaCE
from sae_lm_eval.scaling.laws import Covariance

MOST = 700.0  # of a logarithm; beyond it a side is unbounded
Terms = Callable[[np.ndarray], tuple[float, float]]  # theta -> (R, s)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Central interval of a fraction. A side of None is unbounded; `covers` names what was resampled."""

    low: float | None
    high: float | None
    level: float
    covers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A fraction of the original's compute, parameters or tokens; None with a `reason` where undefined.

    `equivalent` is the amount that buys the spliced loss on the curve, in `unit`: of compute, that of a compute-optimal
    model. `same_training` are parameters and tokens of the model of that loss that was trained as far beyond the
    optimum as the original; its 6ND is exactly the fraction of the original's. `bound` is what can be said where the
    curve's range ends, such as "< 0.094". `constants` and `source` are the curve's.
    """

    quantity: str
    definition: str
    curve: str
    source: str
    constants: dict[str, float] = field(default_factory=dict)
    fraction: float | None = None
    interval: Interval | None = None
    equivalent: float | None = None
    unit: str = ""
    same_training: tuple[float, float] | None = None
    bound: str | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def log10(self) -> float | None:
        return None if self.fraction is None else math.log10(self.fraction)


@dataclass(frozen=True, eq=False)
class Draws:
    """Delta CE and its draws, shared by all estimates so that those of one result vary together."""

    delta: DeltaCE
    deltas: np.ndarray
    level: float
    rng: np.random.Generator

    @classmethod
    def from_delta(cls, delta: DeltaCE, *, n: int, level: float, rng: np.random.Generator) -> "Draws":
        if not 0 < level < 1:
            raise UserError(f"The level of an interval is {level}; it must lie between 0 and 1, such as 0.95.")
        if n < 100:
            raise UserError(f"{n} draws are too few for an interval; take 100 or more.")
        return cls(delta, delta.draw(n, rng=rng), level, rng)

    def parameters(self, covariance: Covariance | None) -> np.ndarray | None:
        """Joint deviations of a law's parameters, (draws, parameters); None where none are published."""
        if covariance is None:
            return None
        zero = np.zeros(len(covariance.matrix))
        normal = self.rng.multivariate_normal(zero, covariance.matrix, len(self.deltas), method="eigh")
        return normal * self.student(covariance.dof)[:, None]

    def student(self, dof: float) -> np.ndarray:
        """Factors that turn normal draws into t draws with `dof` degrees of freedom."""
        return np.sqrt(dof / self.rng.chisquare(dof, len(self.deltas)))

    def interval(self, log_fractions: np.ndarray, *, covers: tuple[str, ...]) -> Interval | None:
        """Percentiles of log fractions; infinite draws are kept, so a side may come out unbounded."""
        if not covers:
            return None
        tail = (1 - self.level) / 2
        low, high = np.quantile(log_fractions, [tail, 1 - tail], method="inverted_cdf")
        return Interval(low=_finite_exp(low), high=_finite_exp(high), level=self.level, covers=covers)


def log_fraction(delta: np.ndarray | float, reducible: float, exponent: float) -> np.ndarray:
    """log (1 + Delta/R)^(-1/s); +inf where Delta <= -R, at or below the floor of the curve."""
    ratio = np.asarray(delta, dtype=float) / reducible
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(ratio <= -1, np.inf, -np.log1p(ratio) / exponent)


def place_on_curve(
    terms: Terms,
    theta: np.ndarray,
    draws: Draws,
    deviations: np.ndarray | None,
) -> tuple[float, Interval | None]:
    """(log fraction, interval) of one definition; the log is +inf at or below the floor."""
    delta = draws.delta.value
    reducible, exponent = terms(theta)
    point = float(log_fraction(delta, reducible, exponent))
    if not math.isfinite(point):
        return point, None
    spread = log_fraction(draws.deltas, reducible, exponent)
    covers = ("documents",) if draws.delta.uncertain else ()
    if deviations is not None:
        slope = gradient(lambda at: float(log_fraction(delta, *terms(at))), theta)
        spread = spread + deviations @ slope
        covers = (*covers, "curve parameters")
    return point, draws.interval(spread, covers=covers)


def gradient(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences, one parameter at a time."""
    steps = 1e-6 * np.maximum(1.0, np.abs(at)) * np.eye(len(at))
    return np.array([(function(at + step) - function(at - step)) / (2 * step.sum()) for step in steps])


def _finite_exp(value: float) -> float | None:
    return math.exp(value) if np.isfinite(value) and value < MOST else None
