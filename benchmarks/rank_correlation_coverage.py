"""How often the interval of Spearman's correlation holds the truth: samples of a bivariate normal.

    python benchmarks/rank_correlation_coverage.py [--samples 1000]

Prints a row for each number of dictionaries and true correlation. The interval is that of `report --scores`, with fewer
draws; below the least number of dictionaries it is computed here all the same.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from sae_lm_eval.exchange import rank_correlation as ranks

SIZES, CORRELATIONS = (5, 6, 8, 12, 20, 50), (0.0, 0.5, 0.8, 0.95)


def coverage(size: int, correlation: float, samples: int, rng: np.random.Generator) -> float:
    """The share of samples whose interval holds Spearman's correlation, 6/pi asin(r/2) (Pearson 1907)."""
    truth, held, counted = 6 / math.pi * math.asin(correlation / 2), 0, 0
    for _ in range(samples):
        x, noise = rng.normal(size=(2, size))
        y = correlation * x + math.sqrt(1 - correlation**2) * noise
        estimate = ranks.rank_correlation(list(x), list(y), ("x", "y"))
        if estimate.low is not None and estimate.high is not None:
            counted += 1
            held += estimate.low <= truth <= estimate.high
    return held / counted if counted else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    arguments = parser.parse_args()
    ranks.DRAWS, ranks.LEAST_FOR_INTERVAL = 999, 0
    rng = np.random.default_rng(0)
    print("dictionaries", *(f"r={r}" for r in CORRELATIONS), sep="\t")
    for size in SIZES:
        print(size, *(f"{coverage(size, r, arguments.samples, rng):.3f}" for r in CORRELATIONS), sep="\t")


if __name__ == "__main__":
    main()
