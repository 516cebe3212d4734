"""How often the intervals of `sae-lm-eval compare` hold the true drop, and how often its tests err, by simulation.

    python benchmarks/comparison_coverage.py                   # 10,000 draws, about 6 minutes
    python benchmarks/comparison_coverage.py --draws 1000      # a look

Prints the Markdown tables of docs/metrics.md. Documents are drawn with known probabilities that a right answer is lost
and that a wrong one is gained, so that the true drop is known. The bootstrap of the first two tables is what the
package does not use, on the same data.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from sae_lm_eval.comparison.paired_statistics import (
    Stratum,
    bonett_price_interval,
    continuous_change,
    mcnemar,
    tango_interval,
)
from sae_lm_eval.comparison.share_lost import share_lost_interval

SIZES, BASELINES, DROPS = (50, 200, 1000), (0.3, 0.6, 0.95), (0.0, 0.02, 0.1)
GAINED = (0.02, 0.1, 0.3)  # shares of the wrong answers that become right
CATEGORIES = 57
# Tasks of equal weight: documents, probability of losing a right answer, of gaining one.
GROUPS = {
    "50, 200 and 1000 documents, alike": ([50, 200, 1000], [0.1] * 3, [0.05] * 3),
    "50, 200 and 1000, no drop": ([50, 200, 1000], [0.02] * 3, [0.02] * 3),
    "20 hard, 500 and 500 easy": ([20, 500, 500], [0.4, 0.02, 0.02], [0.3, 0.01, 0.01]),
    "20 easy, 500 and 500 hard": ([20, 500, 500], [0.02, 0.3, 0.3], [0.01, 0.25, 0.25]),
    "5 of 10 and 5 of 100": ([10] * 5 + [100] * 5, [0.05] * 10, [0.03] * 10),
    "50 and 100, few changes": ([50, 100], [0.01] * 2, [0.0] * 2),
    "50 with a large drop, 300": ([50, 300], [0.15, 0.05], [0.02, 0.02]),
    "4 from 50 to 1000": ([50, 100, 400, 1000], [0.2, 0.1, 0.05, 0.02], [0.05, 0.1, 0.02, 0.01]),
    "2 and 2 documents": ([2, 2], [0.2] * 2, [0.1] * 2),
    "2, 50 and 50": ([2, 50, 50], [0.2] * 3, [0.1] * 3),
    "20 of 2": ([2] * 20, [0.2] * 20, [0.1] * 20),
    "20 of 3": ([3] * 20, [0.2] * 20, [0.1] * 20),
    "57 from 10 to 150": ([10 + 7 * (i % 21) for i in range(57)], [0.08] * 57, [0.04] * 57),
}

tango = lru_cache(None)(tango_interval)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, rng = time.monotonic(), np.random.default_rng(options.seed)
    print(f"{options.draws} draws, a fifth of them for the bootstrap and continuous metrics; seed {options.seed}\n")
    print(f"Each cell: over the shares {', '.join(f'{share:.0%}' for share in GAINED)} of wrong answers gained.\n")
    print("| n | baseline | drop, pp | Tango | paired bootstrap |\n|---|---|---|---|---|")
    held: dict[str, list[float]] = {"Tango": [], "Bonett-Price": []}
    for n, baseline, drop, tango_held, bootstrap_held in accuracies(options.draws, rng):
        held["Tango"] += tango_held
        cells = ", ".join(f"{share:.1%}" for share in tango_held), ", ".join(f"{share:.1%}" for share in bootstrap_held)
        print(f"| {n} | {baseline} | {100 * drop:g} | {' | '.join(cells)} |", flush=True)
    print("\n| group of tasks that count alike | Bonett-Price, stratified | stratified bootstrap |\n|---|---|---|")
    for name, price_held, bootstrap_held in groups(options.draws, rng):
        held["Bonett-Price"].append(price_held)
        print(f"| {name} | {price_held:.1%} | {bootstrap_held:.1%} |", flush=True)
    for name, shares in held.items():
        print(f"\n{name}: mean {np.mean(shares):.1%}, least {min(shares):.1%}, most {max(shares):.1%}.")
    print("\n| n | baseline | chance | share lost | Fieller, adjusted | without adjustment | undefined |")
    print("|---|---|---|---|---|---|---|")
    for *row, adjusted, plain, undefined in shares_lost(options.draws // 5, rng):
        print(
            f"| {' | '.join(f'{value:g}' for value in row)} | {adjusted:.1%} | {plain:.1%} | {undefined:.1%} |",
            flush=True,
        )
    print()
    print("| continuous metric | n | covered (paired bootstrap-t) | undefined | p < .05 with no drop |")
    print("|---|---|---|---|---|")
    for name, n, covered, undefined, false in continuous(options.draws // 5, rng):
        cell = "n/a" if covered is None else f"{covered:.1%}"
        print(f"| {name} | {n} | {cell} | {undefined:.1%} | {false:.1%} |", flush=True)
    print(f"\n| n in each of {CATEGORIES} categories | answers changed | a false positive after Holm |\n|---|---|---|")
    for n, changed, rate in false_positives(options.draws, rng):
        print(f"| {n} | {changed:.0%} | {rate:.1%} |", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s")


def accuracies(draws: int, rng: np.random.Generator) -> Iterator[tuple[int, float, float, list[float], list[float]]]:
    """Coverage by size, baseline and drop, for each share of gained answers: Tango's interval, the bootstrap's."""
    for n, baseline, drop in itertools.product(SIZES, BASELINES, DROPS):
        coverages: tuple[list[float], list[float]] = [], []
        for share in GAINED:
            gained = share * (1 - baseline)
            drawn = rng.multinomial(n, [drop + gained, gained, 1 - drop - 2 * gained], size=draws)
            counts, times = np.unique(drawn, axis=0, return_counts=True)
            coverages[0].append(_share(np.array([tango(int(a), int(b), n) for a, b, _ in counts]), times, drop))
            counts, times = np.unique(drawn[: draws // 5], axis=0, return_counts=True)
            bounds = [bootstrap(row[None, :2], np.array([n]), [1.0], rng) for row in counts]
            coverages[1].append(_share(np.array(bounds), times, drop))
        yield n, baseline, drop, *coverages


def groups(draws: int, rng: np.random.Generator) -> Iterator[tuple[str, float, float]]:
    """Coverage for groups whose tasks count alike, whatever their sizes."""
    for name, (sizes, lost, gained) in GROUPS.items():
        weights, n = np.full(len(sizes), 1 / len(sizes)), np.array(sizes)
        truth = float(weights @ np.subtract(lost, gained))
        counts = np.stack(
            [
                rng.multinomial(m, [a, b, 1 - a - b], size=draws)[:, :2]
                for m, a, b in zip(sizes, lost, gained, strict=True)
            ],
            axis=1,
        )
        bounds = np.array([bonett_price_interval(weights, row[:, 0], row[:, 1], n) for row in counts])
        resampled = np.array([bootstrap(row, n, weights, rng) for row in counts[: draws // 5]])
        yield name, _share(bounds, np.ones(draws), truth), _share(resampled, np.ones(len(resampled)), truth)


def bootstrap(counts: np.ndarray, n: np.ndarray, weights: object, rng: np.random.Generator) -> np.ndarray:
    """The percentile interval of 1000 resamples of lost and gained documents, for a row of `counts` a task."""
    rates = np.column_stack([counts, n - counts.sum(1)]) / n[:, None]
    drawn = rng.multinomial(n, rates, size=(1000, len(n)))
    return np.quantile(((drawn[..., 0] - drawn[..., 1]) / n) @ weights, [0.025, 0.975])


def shares_lost(draws: int, rng: np.random.Generator) -> Iterator[tuple[float, ...]]:
    """n, baseline, chance, true share lost; how often the interval and one without added documents hold it; how often
    the first is undefined, which the others leave out."""
    for n, (base, chance), (lost, gained) in itertools.product(
        (20, 50, 200), ((0.7, 0.25), (0.7, 0.5), (0.95, 0.25)), ((0.02, 0.0), (0.1, 0.02), (0.3, 0.02))
    ):
        truth, held = (lost - gained) / (base - chance), []
        for both, less, more, none in rng.multinomial(n, [base - lost, lost, gained, 1 - base - gained], size=draws):
            before = np.repeat([1.0, 1, 0, 0], [both, less, more, none])
            after = np.repeat([1.0, 0, 1, 0], [both, less, more, none])
            low, high = share_lost_interval([Stratum(1.0, before, after)], [np.full(n, chance)], level=0.95)
            least, most = fieller(before, after, chance)
            held.append((np.isnan(low), low <= truth <= high, least <= truth <= most))
        undefined, adjusted, plain = np.array(held, dtype=bool).T
        yield n, base, chance, round(truth, 3), adjusted[~undefined].mean(), plain[~undefined].mean(), undefined.mean()


def fieller(before: np.ndarray, after: np.ndarray, chance: float) -> tuple[float, float]:
    """Fieller's interval of the documents as they are."""
    drop, above = before - after, before - chance
    covariance = 1.96**2 * np.cov(drop, above, ddof=0) / len(drop)
    square = above.mean() ** 2 - covariance[1, 1]
    linear = drop.mean() * above.mean() - covariance[0, 1]
    root = np.sqrt(max(linear**2 - square * (drop.mean() ** 2 - covariance[0, 0]), 0.0))
    return ((linear - root) / square, (linear + root) / square) if square > 0 else (-np.inf, np.inf)


def continuous(draws: int, rng: np.random.Generator) -> Iterator[tuple[str, int, float | None, float, float]]:
    """Coverage where the interval is defined, how often it is not, and size of the test for scores that are not right
    or wrong; half of the draws have no drop.
    """
    shapes = {
        "normal": lambda n: rng.normal(size=n),
        "skewed (exponential)": lambda n: rng.exponential(size=n) - 1,
        "nats by document, of 20 to 2000 words": None,
        "nine documents in ten changed alike": lambda n: rng.exponential(3, size=n) * (rng.random(n) < 0.1) - 0.3,
    }
    for name, shape in shapes.items():
        for n in (2, 3, 5, 10, 20, 50, 200):
            held, false = [], []
            for trial in range(draws):
                drop = 0.3 * (trial % 2)
                stratum = _perplexities(n, drop, rng) if shape is None else _scores(shape(n), drop, rng)
                change = continuous_change([stratum], level=0.95, draws=1000, seed=trial)
                if not np.isnan(change.low):
                    held.append(change.low <= (-drop if shape is None else drop) <= change.high)
                if not drop:
                    false.append(change.p < 0.05)
            undefined = 1 - len(held) / draws
            yield name, n, float(np.mean(held)) if held else None, undefined, float(np.mean(false))


def _scores(noise: np.ndarray, drop: float, rng: np.random.Generator) -> Stratum:
    baseline = rng.normal(size=len(noise))
    return Stratum(1.0, baseline, baseline - drop + noise * rng.choice([-1, 1]))


def _perplexities(n: int, rise: float, rng: np.random.Generator) -> Stratum:
    """Log-likelihoods whose rise per word is independent of the number of words."""
    words = np.exp(rng.uniform(np.log(20), np.log(2000), n)).round()
    nats = words * rng.normal(4, 0.5, n)
    return Stratum(1.0, -nats, -(nats + words * (rise + rng.normal(0, 0.2, n))), words, lambda mean: -mean)


def false_positives(draws: int, rng: np.random.Generator) -> Iterator[tuple[int, float, float]]:
    """How often any of the categories has p < .05 after Holm where nothing was lost."""
    for n in SIZES:
        for changed in (0.05, 0.2, 0.5):
            lost = rng.binomial(rng.binomial(n, changed, size=(draws, CATEGORIES)), 0.5)
            total = lost + rng.binomial(n - lost, changed / (2 - changed))
            p = _p_values(lost, total - lost)
            yield n, changed, float(np.mean(CATEGORIES * p.min(axis=1) < 0.05))  # Holm's smallest p


def _p_values(lost: np.ndarray, gained: np.ndarray) -> np.ndarray:
    pairs, index = np.unique(np.stack([lost.ravel(), gained.ravel()], 1), axis=0, return_inverse=True)
    return np.array([mcnemar(int(a), int(b)) for a, b in pairs])[index].reshape(lost.shape)


def _share(bounds: np.ndarray, times: np.ndarray, truth: float) -> float:
    held = (bounds[:, 0] <= truth + 1e-12) & (bounds[:, 1] >= truth - 1e-12)
    return float(times[held].sum() / times.sum())


if __name__ == "__main__":
    main()
