"""How often intervals over tasks and over sets of documents hold the truth, by simulation.

And what leaving out tasks at chance does to the overall drop, and how often a detectable drop is seen.

    python benchmarks/population_coverage.py            # 2,000 draws, a few minutes

Prints the Markdown tables of docs/metrics.md, "Population".
"""

from __future__ import annotations

import argparse
from functools import lru_cache

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from sae_lm_eval.comparison.clusters import interval_over_clusters
from sae_lm_eval.comparison.floor import FALSE_DISCOVERIES, FEWEST_DOCUMENTS, LEAST_ABOVE
from sae_lm_eval.comparison.paired_statistics import mcnemar, tango_interval
from sae_lm_eval.comparison.power import detectable_drop

# Questions in the test splits of MMLU's subjects.
# fmt: off
MMLU = [
    100, 135, 152, 100, 265, 144, 100, 100, 100, 173, 102, 100, 235, 114, 145, 378, 126, 100, 310, 203, 100, 165,
    198, 193, 390, 270, 238, 151, 545, 216, 204, 237, 223, 131, 121, 108, 163, 112, 103, 234, 100, 783, 346, 895,
    306, 311, 324, 282, 1534, 272, 612, 110, 245, 201, 100, 166, 171,
]
# fmt: on
TASKS = {
    "67 of 1,000, alike": [1000] * 67,
    "67 of 40, alike": [40] * 67,
    "57 as MMLU's, by size": MMLU,
    "13 of 200, alike": [200] * 13,
    "10 from 50 to 1,000, by size": [50, 50, 100, 100, 150, 200, 300, 400, 600, 1000],
}
DROP, CHANGED = 0.03, 0.16
tango, test = lru_cache(None)(tango_interval), lru_cache(None)(mcnemar)


def lost_and_gained(n: np.ndarray, drop: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Answers that change, of tasks with such drops."""
    loses, gains = np.clip((CHANGED + drop) / 2, 0, 1), np.clip((CHANGED - drop) / 2, 0, 1)
    lost = rng.binomial(n, loses)
    return lost, rng.binomial(n - lost, gains / (1 - loses))


def over_tasks(draws: int, rng: np.random.Generator) -> None:
    print("| tasks | sd of drops between tasks, pp | interval over tasks | over questions |\n|---|---|---|---|")
    for name, sizes in TASKS.items():
        n = np.array(sizes)
        for spread in (0.0, 0.02, 0.05):
            held = np.zeros(2)
            for _ in range(draws):
                lost, gained = lost_and_gained(n, rng.normal(DROP, spread, len(n)), rng)
                tasks = interval_over_clusters((lost - gained) / n, n, level=0.95)
                questions = tango(int(lost.sum()), int(gained.sum()), int(n.sum()))
                held += [low <= DROP <= high for low, high in (tasks, questions)]
            print(f"| {name} | {100 * spread:g} | {held[0] / draws:.1%} | {held[1] / draws:.1%} |")


def over_sets(draws: int, rng: np.random.Generator) -> None:
    print("\n| sets | questions a set | interval over sets | over questions |\n|---|---|---|---|")
    for sets, most in ((10, 5), (30, 5), (100, 5), (100, 20)):
        held = np.zeros(2)
        for _ in range(draws):
            n = rng.integers(1, most + 1, sets)
            lost, gained = lost_and_gained(n, rng.normal(DROP, 0.1, sets), rng)
            clusters = interval_over_clusters((lost - gained) / n, n, level=0.95)
            questions = tango(int(lost.sum()), int(gained.sum()), int(n.sum()))
            held += [low <= DROP <= high for low, high in (clusters, questions)]
        print(f"| {sets} | 1 to {most} | {held[0] / draws:.1%} | {held[1] / draws:.1%} |")


def floor(draws: int, rng: np.random.Generator) -> None:
    """Nothing is lost: what the overall drop is off by, by leaving out what the baseline's answers say is at chance."""
    print("\n| tasks | chance | mean accuracy | sd | tasks kept | drop off by, any task, pp | with the rule, pp |")
    print("|---|---|---|---|---|---|---|")
    shapes = {"57 as MMLU's": (MMLU, 0.25), "57 of 20": ([20] * 57, 0.25), "67 of 1,000": ([1000] * 67, 0.5)}
    for name, (sizes, chance) in shapes.items():
        n = np.array(sizes)
        for more, spread in ((0.0, 0.0), (0.02, 0.03), (0.1, 0.15), (0.25, 0.15)):
            off, ruled, kept = [], [], []
            for _ in range(draws):
                true = np.clip(rng.normal(chance + more, spread, len(n)), chance, 1)
                right = rng.binomial(n, true)
                change = np.minimum(0.05, (1 - true) * 0.5)
                lost = rng.binomial(right, np.clip(change / true, 0, 1))
                gained = rng.binomial(n - right, np.clip(change / np.maximum(1 - true, 1e-9), 0, 1))
                passes = multipletests(stats.binom.sf(right - 1, n, chance), FALSE_DISCOVERIES, method="fdr_bh")[0]
                if passes.any():
                    off.append(100 * (lost - gained)[passes].sum() / n[passes].sum())
                stays = passes | (n < FEWEST_DOCUMENTS) | (passes.mean() < LEAST_ABOVE)
                ruled.append(100 * (lost - gained)[stays].sum() / n[stays].sum())
                kept.append(stays.mean())
            print(
                f"| {name} | {chance:g} | {chance + more:g} | {spread:g} | {np.mean(kept):.0%} | {np.mean(off):.2f} | "
                f"{np.mean(ruled):.2f} |"
            )


def power(draws: int, rng: np.random.Generator) -> None:
    print("\n| questions | answers that change | detectable, pp | seen |\n|---|---|---|---|")
    for n in (50, 200, 1000, 5000):
        for changed in (0.0, 0.02, 0.1, 0.3):
            drop = detectable_drop([1.0], [changed * n], [n])
            share = max(changed, drop)
            samples = rng.multinomial(n, [(share + drop) / 2, (share - drop) / 2, 1 - share], size=draws)
            seen = np.mean([test(int(lost), int(gained)) < 0.05 for lost, gained, _ in samples])
            print(f"| {n:,} | {changed:.0%} | {100 * drop:.2f} | {seen:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for part in (over_tasks, over_sets, floor, power):
        part(options.draws, np.random.default_rng(options.seed))


if __name__ == "__main__":
    main()
