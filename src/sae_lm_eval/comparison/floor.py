"""Tasks at which the untouched model is at chance: it has nothing to lose there. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from sae_lm_eval.comparison.pairs import Pair

FALSE_DISCOVERIES = 0.05
# Of a task with fewer documents too little is known to leave it out; and where fewer tasks than this share are above
# chance, those few may have passed by luck. Either would make a drop of the luck that the baseline loses again.
FEWEST_DOCUMENTS, LEAST_ABOVE = 100, 0.2
HOW = "exact binomial tests at a false discovery rate of 5%"


def at_floor(pairs: Mapping[str, Pair]) -> list[str]:
    """The tasks, in their order, whose baseline is not above chance; those without a known chance are never among them.

    One-sided exact binomial tests of the baseline's right answers, with Benjamini and Hochberg's adjustment (1995,
    Journal of the Royal Statistical Society B 57:289-300), so that of many tasks at chance hardly one passes by luck.
    Where documents have unlike chances their mean is taken: the right answers then vary less than binomially.
    """
    from statsmodels.stats.multitest import multipletests

    known = {task: pair for task, pair in pairs.items() if not np.isnan(pair.chance).any()}
    if not known:
        return []
    p = [_above_chance_p(pair) for pair in known.values()]
    above: Any = multipletests(p, alpha=FALSE_DISCOVERIES, method="fdr_bh")[0]
    return [task for task, passes in zip(known, above, strict=True) if not passes]


def _above_chance_p(pair: Pair) -> float:
    right, chance = int(pair.before.sum()), float(pair.chance.mean())
    if chance >= 1:
        return 1.0
    return float(stats.binomtest(right, len(pair.before), chance, alternative="greater").pvalue)


def left_out(pairs: Mapping[str, Pair]) -> list[str]:
    """The tasks at the floor that do not enter the overall drop.

    None where fewer than a fifth of the tasks are above chance, and of no task with fewer than 100 documents: to choose
    tasks by the baseline's own answers makes its luck a drop. docs/metrics.md has how large that is.
    """
    found = at_floor(pairs)
    if len(pairs) - len(found) < LEAST_ABOVE * len(pairs):
        return []
    return [task for task in found if len(pairs[task].doc_ids) >= FEWEST_DOCUMENTS]
