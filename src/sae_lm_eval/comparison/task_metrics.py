"""Which of a task's metrics can be compared document by document, and how its documents make lm_eval's number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.comparison.samples import metric_columns
from sae_lm_eval.results.results import Results

# lm_eval's aggregations that the documents' values determine one by one; other ones (BLEU, F1, Matthews) are left out.
SCALES: dict[str, Callable[[Any], Any]] = {
    "mean": lambda mean: mean,
    "perplexity": lambda mean: np.exp(-mean),
    "bits": lambda mean: -mean / math.log(2),
}


# The logarithm of such a metric, where differences are to be taken of that: a perplexity's errors multiply.
LOGARITHMS: dict[str, Callable[[Any], Any]] = {"perplexity": lambda mean: -mean}


@dataclass(frozen=True)
class Measure:
    """A metric of a task under one filter; `sign` is 1 where higher is better, -1 where lower is.

    `primary` is the first of the task's that can be compared.
    """

    metric: str
    filter: str
    kind: str
    scale: str
    sign: int
    primary: bool = False

    @property
    def key(self) -> str:
        return f"{self.metric},{self.filter}"


def values_of(answers: pd.DataFrame, measure: Measure) -> tuple[np.ndarray, np.ndarray | None, pd.Index]:
    """Per document: value, size (None unless lm_eval logs one), and doc_id."""
    return _values(answers, measure.metric, measure.filter)


def _values(answers: pd.DataFrame, metric: str, named: str) -> tuple[np.ndarray, np.ndarray | None, pd.Index]:
    column = answers.loc[named][metric].dropna()
    if column.map(lambda value: isinstance(value, list) and len(value) == 2).all():
        pairs = np.array(column.tolist(), dtype=float).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1], column.index
    return column.to_numpy(dtype=float), None, column.index


def measures_of(
    task: str, runs: Sequence[Results], answers: Sequence[pd.DataFrame], *, metrics: str
) -> tuple[list[Measure], list[str]]:
    """The measures of a task, and why any was left out: right-or-wrong ones first, else in lm_eval's order.

    With metrics="primary" only the first. A measure counts only if
    each run's documents give the number that lm_eval wrote for that run.
    """
    measures: list[Measure] = []
    left_out: list[str] = []
    filters = answers[0].index.get_level_values("filter").unique()
    logged = {(metric, named) for metric in metric_columns(answers[0]) for named in filters}
    for key in runs[0].scores[task]:
        metric, _, named = key.rpartition(",")
        if metric.endswith("_stderr") or not metric:
            continue
        if (metric, named) not in logged:
            left_out.append(f"{task}: {key} is left out, for lm_eval logs no value of it by document.")
            continue
        measure = _measure(task, metric, named, runs, answers)
        if isinstance(measure, Measure):
            measures.append(measure)
        else:
            left_out.append(f"{task}: {key} is left out, for {measure}.")
    measures.sort(key=lambda measure: measure.kind != "accuracy")
    measures[:1] = [replace(measure, primary=True) for measure in measures[:1]]
    return (measures, left_out) if metrics == "all" or not measures else (measures[:1], [])


def _measure(
    task: str, metric: str, named: str, runs: Sequence[Results], answers: Sequence[pd.DataFrame]
) -> Measure | str:
    higher = runs[0].higher_is_better.get(task, {}).get(metric)
    if higher is None:
        return "lm_eval does not say whether higher is better"
    try:
        values = [_values(side, metric, named) for side in answers]
    except (TypeError, ValueError):
        return "its values by document are no numbers"
    if not all(len(value) and np.isfinite(value).all() for value, *_ in values):
        return "its values by document are not all finite"
    whole = [len(value) if sizes is None else sizes.sum() for value, sizes, _ in values]
    means = np.array([value.sum() / size for (value, *_), size in zip(values, whole, strict=True)])
    scores = [score for run in runs if (score := run.scores[task].get(f"{metric},{named}")) is not None]
    if len(scores) < len(runs):
        return "lm_eval wrote no number for it"
    for name, scale in SCALES.items():
        with np.errstate(over="ignore"):
            fits = np.allclose(scale(means), scores, rtol=1e-6, atol=1e-9)
        if fits:
            right_or_wrong = all(sizes is None and np.isin(value, (0, 1)).all() for value, sizes, _ in values)
            kind = "accuracy" if name == "mean" and right_or_wrong and higher else "continuous"
            return Measure(metric, named, kind, name, 1 if higher else -1)
    return "its documents' values do not average to lm_eval's number"
