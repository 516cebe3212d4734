"""Pythia's published accuracies over its training as curves, where a run has no family of its own.

From EleutherAI/pythia (Apache-2.0; Biderman et al. 2023, arXiv:2304.01373): zero-shot accuracy of 16 models at 26 steps
on seven tasks, by an earlier version of lm_eval. Its prompts are not shown to be today's, so nothing is paired: only
the drop comes from the run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.capability.inversion import FamilyScores, log_share_of_compute
from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.scaling.data_files import Row, data_path, read_rows

FILE = "pythia_task_scores.csv"
COLUMNS = ("variant", "task", "drop", "fraction", "low", "high", "level", "reason")
LAST = ("main", "step143000", "None")  # revisions that are the end of training
DRAWS = 1000


@cache
def published() -> dict[tuple[str, str], list[Row]]:
    """The rows of each model and task, by rising tokens."""
    curves: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in read_rows(data_path(FILE), required=["model", "tokens", "task", "value", "stderr"]):
        curves[str(row["model"]), str(row["task"])].append(row)
    return {key: sorted(rows, key=lambda row: float(row["tokens"])) for key, rows in curves.items()}


def published_equivalents(comparison: Comparison, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """A row for each variant and task with a published curve, with `COLUMNS`; none of another model, or with shots.

    Each draw takes the published accuracies anew by their standard errors, and the drop by the two sides of its own
    interval, which need not be equally wide.
    """
    arguments, rows = comparison.baseline.model_args, []
    model = str(arguments.get("pretrained")).rstrip("/").rpartition("/")[2].lower()
    drops = comparison.drops
    accuracies: Any = drops[(drops["section"] == "task") & (drops["metric"] == "acc") & (drops["shots"] == 0)]
    for row in accuracies.to_dict("records") if str(arguments.get("revision", "main")) in LAST else ():
        if (curve := published().get((model, str(row["name"])))) is None:
            continue
        drop, low, high = (float(row[name]) / 100 for name in ("drop", "low", "high"))
        drawn = drawn_drops(drop, low, high, comparison.level, draws, np.random.default_rng([seed, 1]))
        estimate = _placed(curve, drop, drawn, comparison.level, np.random.default_rng(seed))
        labels = {"variant": row["variant"], "task": row["name"], "drop": drop, "level": comparison.level}
        rows.append({**labels, **estimate})
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def drawn_drops(drop: float, low: float, high: float, level: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draws whose quantiles at both ends of the interval are its bounds, and whose median is the drop.

    They are normal on either side, each with the standard deviation of that side's width. Without an interval all are
    the drop.
    """
    if math.isnan(low) or math.isnan(high):
        return np.full(draws, drop)
    unit = rng.normal(size=draws) / NormalDist().inv_cdf((1 + level) / 2)
    return drop + np.where(unit < 0, drop - low, high - drop) * unit


def _placed(
    curve: list[Row], drop: float, drops: np.ndarray, level: float, rng: np.random.Generator
) -> dict[str, float | str | None]:
    """The fraction with its interval, or why there is none."""
    means, errors, tokens = (
        np.array([row[name] for row in curve], dtype=float) for name in ("value", "stderr", "tokens")
    )
    drawn, tail = rng.normal(means, errors, (len(drops), len(means))), (1 - level) / 2
    if np.quantile(drawn[:, -1] - drawn[:, 0], tail) <= 0:
        return {"reason": f"flat curve: the accuracy rises by {means[-1] - means[0]:.3g} in all of the training"}
    scores = FamilyScores(tokens, means[:, None], len(means) - 1, means[-1:] - drop, np.ones(1), [])
    at = log_share_of_compute(scores, means, drop)
    if not math.isfinite(at):
        return {
            "reason": "the accuracy is below the first step's" if at < 0 else "the accuracy is above the last step's"
        }
    logs = [log_share_of_compute(scores, row, float(lost)) for row, lost in zip(drawn, drops, strict=True)]
    low, high = (float(end) for end in np.quantile(logs, [tail, 1 - tail], method="inverted_cdf"))
    ends = {name: math.exp(end) if math.isfinite(end) else None for name, end in (("low", low), ("high", high))}
    return {"fraction": math.exp(at), **ends}
