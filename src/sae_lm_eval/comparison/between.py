"""Variants against each other on the questions that all of them answered. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.comparison.clusters import clustered_change
from sae_lm_eval.comparison.floor import left_out
from sae_lm_eval.comparison.paired_statistics import Stratum, accuracy_change
from sae_lm_eval.comparison.pairs import IntervalOptions, Pair

# Of more variants only those pairs are shown that hold the one which loses least.
MOST_ALL_PAIRS = 6
COLUMNS = ["variant", "other", "difference", "low", "high", "n", "interval", "p", "p_adjusted", "test"]


def between_variants(pairs: Mapping[str, Mapping[str, Sequence[Pair]]], options: IntervalOptions) -> pd.DataFrame:
    """How much more each variant loses than another, over all right-or-wrong tasks, question by question.

    `pairs` has the tasks' pairs by variant. `difference`, `low` and `high` are pp, positive where `variant` loses more
    than `other`; `p_adjusted` is Holm's, over these rows.
    """
    from statsmodels.stats.multitest import multipletests

    right: dict[str, dict[str, Pair]] = {}
    for variant, tasks in pairs.items():
        first = {
            task: next((pair for pair in task_pairs if pair.measure.kind == "accuracy"), None)
            for task, task_pairs in tasks.items()
        }
        accuracies = {task: pair for task, pair in first.items() if pair is not None}
        right[variant] = {task: pair for task, pair in accuracies.items() if task not in left_out(accuracies)}
    if len(right) < 2 or not all(right.values()):
        return pd.DataFrame(columns=COLUMNS)
    by_score = sorted(right, key=lambda name: -sum(pair.after.sum() for pair in right[name].values()))
    chosen = list(combinations(reversed(by_score), 2))
    if len(by_score) > MOST_ALL_PAIRS:
        chosen = [(worse, by_score[0]) for worse in reversed(by_score[1:])]
    rows = [_row(worse, better, right, options) for worse, better in chosen]
    frame: Any = pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "p_adjusted"])
    frame["p_adjusted"] = multipletests(frame["p"], method="holm")[1]
    return frame[COLUMNS]


def _row(
    worse: str, better: str, right: Mapping[str, Mapping[str, Pair]], options: IntervalOptions
) -> tuple[object, ...]:
    n = sum(len(pair.doc_ids) for pair in right[better].values())
    strata = [
        Stratum(len(pair.doc_ids) / n, pair.after, right[worse][task].after) for task, pair in right[better].items()
    ]
    if options.docs_by is None:
        change = accuracy_change(strata, level=options.level, draws=options.draws, seed=options.seed)
    else:
        labels = [np.asarray(pair.labels) for pair in right[better].values()]
        drawn = {"level": options.level, "draws": options.draws, "seed": options.seed}
        change = clustered_change(strata, labels, options.docs_by, **drawn)
    bounds = 100 * change.drop, 100 * change.low, 100 * change.high
    return worse, better, *bounds, n, change.interval, change.p, change.test
