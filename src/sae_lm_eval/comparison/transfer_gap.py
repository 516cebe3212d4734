"""How much more a variant costs in one model than in another, question by question. Neither torch nor lm_eval."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from sae_lm_eval.comparison.clusters import by_cluster, interval_over_clusters
from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.comparison.paired_statistics import FEWEST
from sae_lm_eval.comparison.restored import UNDEFINED, IntervalEstimate


def gap(home: Comparison, away: Comparison, variant: str) -> tuple[IntervalEstimate, int]:
    """Drop in the model of `away` less that in the model of `home`, in pp, and the number of questions.

    Of each question that both were asked, the loss in one less the loss in the other, each against its own model
    untouched: -2 to 2. Their mean has Student's interval; with `docs_by` the cluster-robust one of
    `interval_over_clusters`. Bounds are nan where there are few of them or all are alike.
    """
    tasks = _right_or_wrong(home) & _right_or_wrong(away)
    here, there = (_losses(each, variant, tasks) for each in (home, away))
    both = here.index.intersection(there.index)
    if not len(both):
        return UNDEFINED, 0
    differences = 100 * (there.loc[both, "score_lost"] - here.loc[both, "score_lost"]).to_numpy(dtype=float)
    mean, n = float(differences.mean()), len(both)
    spread = float(differences.std(ddof=1)) if n > 1 else 0.0
    if n < FEWEST or not spread:
        return IntervalEstimate(mean, np.nan, np.nan), n
    if home.docs_by is not None:
        means, shares = by_cluster([differences], [1.0], [here.loc[both, "set"].to_numpy()])
        return IntervalEstimate(mean, *interval_over_clusters(means, shares, level=home.level)), n
    half = float(stats.t.ppf(0.5 + home.level / 2, n - 1)) * spread / n**0.5
    return IntervalEstimate(mean, mean - half, mean + half), n


def _right_or_wrong(comparison: Comparison) -> set[str]:
    """The tasks that count in the overall drop."""
    counted = {task for cut in comparison.cuts if cut.section == "overall" for task in cut.tasks}
    drops = comparison.drops
    accurate = drops.loc[(drops["section"] == "task") & (drops["kind"] == "accuracy") & drops["primary"], "name"]
    return counted & set(accurate)


def _losses(comparison: Comparison, variant: str, tasks: set[str]) -> Any:
    documents: Any = comparison.documents()
    own = documents[(documents["variant"] == variant) & documents["task"].isin(tasks)]
    return own.set_index(["task", "doc_id"])[["score_lost", "set"]]
