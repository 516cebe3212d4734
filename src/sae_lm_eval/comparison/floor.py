"""Tasks at which the untouched model is at chance: it has nothing to lose there. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sae_lm_eval.comparison.clusters import above_zero_p, by_cluster
from sae_lm_eval.comparison.pairs import Pair

FALSE_DISCOVERIES = 0.05
# Of a task with fewer documents, or sets of them, too little is known to leave it out; and where fewer tasks than
# this share are above chance, those few may have passed by luck. Either would make a drop of the luck that the
# baseline loses again.
FEWEST_DOCUMENTS, LEAST_ABOVE = 100, 0.2


def at_floor(pairs: Mapping[str, Pair]) -> list[str]:
    """The tasks, in their order, whose baseline is not above chance; without a known chance, those with nothing right.

    One-sided tests of the baseline's right answers, with Benjamini and Hochberg's adjustment (1995, Journal of the
    Royal Statistical Society B 57:289-300), so that of many tasks at chance hardly one passes by luck.
    """
    from statsmodels.stats.multitest import multipletests

    with_chance = {task: pair for task, pair in pairs.items() if not np.isnan(pair.chance).any()}
    floor = {task for task, pair in pairs.items() if task not in with_chance and not pair.before.any()}
    if with_chance:
        p = [above_chance_p(pair.before, pair.chance, pair.labels) for pair in with_chance.values()]
        above: Any = multipletests(p, alpha=FALSE_DISCOVERIES, method="fdr_bh")[0]
        floor |= {task for task, passes in zip(with_chance, above, strict=True) if not passes}
    return [task for task in pairs if task in floor]


def above_chance_p(right: np.ndarray, chance: np.ndarray, labels: np.ndarray) -> float:
    """One-sided p of so many right answers (0 or 1), each right by chance with a known probability.

    Exact binomial; where documents have unlike chances their mean is taken, and the right answers then vary less than
    binomially. Where `labels` put documents into sets, the test is over the sets: cluster-robust, as an interval over
    them is, or where they do not differ binomial over as many answers as there are sets.
    """
    usual, count = float(chance.mean()), len(set(labels))
    if usual >= 1:
        return 1.0
    if count < len(right):
        p = above_zero_p(*by_cluster([right - chance], [1.0], [labels]))
        if not np.isnan(p):
            return p
    certain = round(float(right.mean()) * count)
    return float(stats.binomtest(certain, count, usual, alternative="greater").pvalue)


def left_out(pairs: Mapping[str, Pair]) -> list[str]:
    """The tasks at the floor that do not enter the overall drop.

    None where fewer than a fifth of the tasks are above chance, and of no task with fewer than 100 documents, or sets
    of them where the test was over sets: to choose tasks by the baseline's own answers makes its luck a drop.
    docs/metrics.md has how large that is.
    """
    floor = at_floor(pairs)
    if len(pairs) - len(floor) < LEAST_ABOVE * len(pairs):
        return []
    return [task for task in floor if _tested(pairs[task]) >= FEWEST_DOCUMENTS]


def _tested(pair: Pair) -> int:
    """Over how many documents or sets of them it was decided that a task is at the floor."""
    by_test = not np.isnan(pair.chance).any()
    return len(set(pair.labels)) if by_test else len(pair.doc_ids)


def note_of(gone: Sequence[str], pairs: Mapping[str, Pair], docs_by: str | None) -> str:
    """Which of the tasks were left out, and why."""
    few = f"{', '.join(gone[:5])}{f' and {len(gone) - 5} more' if len(gone) > 5 else ''}"
    how = "exact binomial tests" if docs_by is None else f"tests over sets by {docs_by}"
    tested = [task for task in gone if not np.isnan(pairs[task].chance).any()]
    why = [f"is not above chance, by {how} at a false discovery rate of 5%"] if tested else []
    why += ["answers nothing right"] if len(tested) < len(gone) else []
    return f"Overall leaves out {len(gone)} of {len(pairs)} tasks at which the baseline {', or '.join(why)}: {few}."
