"""Draws of documents and of permutations. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def exceeded(null: np.ndarray, seen: float) -> float:
    """Two-sided Monte Carlo p, which counts what was seen as one of the draws."""
    tolerance = 1e-9 * max(abs(seen), 1e-12)
    return float(((np.abs(null) >= abs(seen) - tolerance).sum() + 1) / (len(null) + 1))


def chunks(draws: int, n: int, *, most: int = 4_000_000) -> list[int]:
    """Sizes that add up to `draws`, of arrays with `n` columns that fit in memory."""
    size = max(1, most // n)
    return [min(size, draws - start) for start in range(0, draws, size)]


def document_counts(
    documents: int, draws: int, rng: np.random.Generator, *, most: int = 4_000_000
) -> Iterator[np.ndarray]:
    """How often each document is drawn, (some draws, documents), when as many as there are are drawn with replacement
    (Efron 1979)."""
    share = np.full(documents, 1 / documents)
    for some in chunks(draws, documents, most=most):
        yield rng.multinomial(documents, share, size=some)


def ratio_of_sums(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of sums along the last axis, and its variance by the delta method (Cochran 1977, section 6.4)."""
    ratio = values.sum(-1) / sizes.sum(-1)
    rest = values - ratio[..., None] * sizes
    return ratio, rest.var(-1, ddof=1) / sizes.mean(-1) ** 2 / values.shape[-1]


def resampled_ratios(
    values: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """By how far the ratio of each resample is off, and the variance that the resample gives it."""
    n, resamples = len(values), []
    for size in chunks(draws, n):
        index = rng.integers(0, n, (size, n))
        resamples.append(ratio_of_sums(values[index], sizes[index]))
    ratios, variances = (np.concatenate(parts) for parts in zip(*resamples, strict=True))
    return ratios - values.sum() / sizes.sum(), variances
