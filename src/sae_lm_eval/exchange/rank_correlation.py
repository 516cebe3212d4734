"""Spearman's rank correlation with an interval over what it is a sample of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

LEAST = 5  # pairs, below which ranks say next to nothing
LEAST_FOR_INTERVAL = 8  # below which the interval holds the truth too seldom: benchmarks/rank_correlation_coverage.py
DRAWS, SEED, LEVEL = 9999, 0, 0.95


@dataclass(frozen=True)
class RankCorrelation:
    """`rho` with its bounds over `n` pairs; what is None is so for the `reason`."""

    n: int
    rho: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """The correlation of the ranks along `axis`, ties with their mean rank (Spearman 1904); nan for constants."""
    x, y = (rankdata(values, axis=axis) for values in (x, y))
    x, y = (ranks - ranks.mean(axis=axis, keepdims=True) for ranks in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(axis=axis) / np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))


def rank_correlation(x: Sequence[float], y: Sequence[float], what: tuple[str, str]) -> RankCorrelation:
    """The correlation of pairs and its interval by the bootstrap over pairs; `what` names both for a reason."""
    n = len(x)
    if n < LEAST:
        return RankCorrelation(n, reason=f"fewer than {LEAST} dictionaries")
    for values, name in zip((x, y), what, strict=True):
        if len(set(values)) == 1:
            return RankCorrelation(n, reason=f"the {name} of all {n} is the same")
    rho = float(spearman(np.asarray(x), np.asarray(y)))
    if n < LEAST_FOR_INTERVAL:
        return RankCorrelation(n, rho, reason=f"no interval: fewer than {LEAST_FOR_INTERVAL} dictionaries")
    if abs(rho) > 1 - 1e-12:
        return RankCorrelation(n, rho, reason="no interval: where all ranks agree, so do all draws")
    return RankCorrelation(n, rho, *_interval(np.asarray(x, float), np.asarray(y, float)))


def _interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Quantiles of the correlation over resampled pairs (Efron 1979); where one side is constant there is none."""
    draws = np.random.default_rng(SEED).integers(0, len(x), (DRAWS, len(x)))
    rhos = spearman(x[draws], y[draws])
    low, high = np.nanquantile(rhos, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
