"""The documents of some tasks, as the baseline and a variant answered them -> one row of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.comparison.clusters import (
    FEWEST_TASKS,
    NAN,
    by_cluster,
    clustered_change,
    interval_over_clusters,
    share_lost_over_clusters,
)
from sae_lm_eval.comparison.paired_statistics import (
    Stratum,
    accuracy_change,
    accuracy_p,
    continuous_change,
    continuous_p,
    mean_change,
)
from sae_lm_eval.comparison.power import detectable_by_width, detectable_drop
from sae_lm_eval.comparison.samples import CHANCE, MARGIN, RIGHT
from sae_lm_eval.comparison.share_lost import share_lost_interval
from sae_lm_eval.comparison.subsets import Cut
from sae_lm_eval.comparison.task_metrics import LOGARITHMS, SCALES, Measure, values_of
from sae_lm_eval.results.results import Results

NO_CHOICES = "chance is unknown: no fixed choices"
NOT_ABOVE = "the baseline is not clearly above chance"
NONE_RIGHT = "the baseline answers nothing right"
AGAIN = "again"  # in a row, the function from draws to its p


@dataclass(frozen=True, eq=False)
class Pair:
    """One task as the baseline and a variant answered it; arrays go by document, in order of doc_id.

    `labels` says which documents belong together; each by itself where that is not asked for.
    """

    measure: Measure
    before: np.ndarray
    after: np.ndarray
    sizes: np.ndarray | None
    margin_before: np.ndarray
    margin_after: np.ndarray
    chance: np.ndarray
    right: np.ndarray
    doc_ids: np.ndarray
    labels: np.ndarray

    def restricted(self, doc_ids: set[int]) -> Pair:
        keep = np.isin(self.doc_ids, list(doc_ids))
        arrays = {name: value[keep] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays)


@dataclass(frozen=True)
class IntervalOptions:
    level: float
    draws: int
    seed: int
    docs_by: str | None = None


def pair_documents(measure: Measure, before: pd.DataFrame, after: pd.DataFrame, docs_by: str | None = None) -> Pair:
    values, sizes, doc_ids = values_of(before, measure)
    of_filter = before.loc[measure.filter].loc[doc_ids]
    return Pair(
        measure=measure,
        before=values,
        after=values_of(after, measure)[0],
        sizes=sizes,
        margin_before=of_filter[MARGIN].to_numpy(),
        margin_after=after.loc[measure.filter].loc[doc_ids][MARGIN].to_numpy(),
        chance=of_filter[CHANCE].to_numpy(),
        right=of_filter[RIGHT].to_numpy(dtype=object),
        doc_ids=doc_ids.to_numpy(),
        labels=_labels(of_filter["doc"], docs_by),
    )


def _labels(documents: pd.Series, docs_by: str | None) -> np.ndarray:
    """What each document has in a field; one that has nothing there belongs to no other."""
    if docs_by is None:
        return np.arange(len(documents)).astype(str)
    values = [document.get(docs_by) if isinstance(document, Mapping) else None for document in documents]
    alone = [f"\0{at}" for at in range(len(values))]
    return np.array(
        [own if value is None else str(value) for value, own in zip(values, alone, strict=True)], dtype=object
    )


def row_of(
    cut: Cut,
    run: Results,
    baseline: Results,
    pairs: Mapping[str, Pair],
    weights: Sequence[float] | np.ndarray,
    options: IntervalOptions,
) -> dict[str, Any]:
    first = next(iter(pairs.values())).measure
    strata = _strata(pairs, weights, options.docs_by)
    accuracy, logarithmic = first.kind == "accuracy", strata[0].form == "log"
    change_of, p_of = (accuracy_change, accuracy_p) if accuracy else (continuous_change, continuous_p)
    drawn: dict[str, Any] = {"level": options.level, "draws": options.draws, "seed": options.seed}
    if accuracy and options.docs_by is not None:
        change = clustered_change(strata, [pair.labels for pair in pairs.values()], options.docs_by, **drawn)
    else:
        change = change_of(strata, **drawn)
    unit = 100 if accuracy else first.sign
    bounds = sorted((change.low * unit, change.high * unit))
    metrics, filters = ({getattr(p.measure, name) for p in pairs.values()} for name in ("metric", "filter"))
    shots = {baseline.n_shot.get(task) for task in pairs}
    row: dict[str, Any] = {
        "variant": run.name,
        **{name: getattr(cut, name) for name in ("section", "parent", "name", "alias")},
        "metric": first.metric if len(metrics) == 1 else "accuracy",
        "filter": first.filter if len(filters) == 1 else "mixed",
        "primary": any(pair.measure.primary for pair in pairs.values()),
        "kind": first.kind,
        "tasks": len(pairs),
        "n": sum(len(pair.doc_ids) for pair in pairs.values()),
        "shots": shots.pop() if len(shots) == 1 else None,
        "baseline": change.baseline,
        "score": change.variant,
        "drop": change.drop * unit,
        "low": bounds[0],
        "high": bounds[1],
        "unit": "pp" if accuracy else "nats" if logarithmic else first.metric,
        **{name: getattr(change, name) for name in ("interval", "p", "test")},
        "caution": change.caution or None,
        "kl": _kl(run, pairs),
        AGAIN: lambda draws: p_of(strata, draws=draws, rng=np.random.default_rng([options.seed, 1])),
    }
    if logarithmic:
        with np.errstate(over="ignore"):
            ratios = np.exp([row["drop"], row["low"], row["high"]]).tolist()
        row |= dict(zip(("ratio", "ratio_low", "ratio_high"), ratios, strict=True))
    if accuracy:
        row["lost"] = sum(int((pair.before > pair.after).sum()) for pair in pairs.values())
        row["gained"] = sum(int((pair.after > pair.before).sum()) for pair in pairs.values())
        row |= _over_tasks(strata, weights, options.level)
        if options.docs_by is not None:
            half = (bounds[1] - bounds[0]) / 2
            row["detectable"] = detectable_by_width(half, options.level)
        if row["detectable"] > 100 * change.baseline:  # more than there is to lose
            row["detectable"] = NAN
    row |= _above_chance(first.kind, change.baseline, change.drop, pairs, strata, options)
    return row | _margin_change(pairs, weights, options)


def _over_tasks(strata: Sequence[Stratum], weights: Sequence[float] | np.ndarray, level: float) -> dict[str, float]:
    """The interval over tasks (pp) where there are enough of them, and the drop (pp) that would have been seen."""
    drops = [s.baseline.mean() - s.variant.mean() for s in strata]
    low, high = interval_over_clusters(drops, weights, level=level) if len(strata) >= FEWEST_TASKS else (NAN, NAN)
    changed = [np.count_nonzero(s.baseline != s.variant) for s in strata]
    seen = detectable_drop(weights, changed, [len(s.baseline) for s in strata])
    return {"tasks_low": 100 * low, "tasks_high": 100 * high, "detectable": 100 * seen}


def _strata(
    pairs: Mapping[str, Pair], weights: Sequence[float] | np.ndarray, docs_by: str | None = None
) -> list[Stratum]:
    """The tasks as strata, in logarithms where each has a metric whose logarithms are compared.

    Of a metric that is not right or wrong, the documents that belong together count as one.
    """
    log = all(pair.measure.scale in LOGARITHMS for pair in pairs.values())
    scales = LOGARITHMS if log else SCALES
    strata = []
    for weight, pair in zip(weights, pairs.values(), strict=True):
        before, after, sizes = pair.before, pair.after, pair.sizes
        if docs_by is not None and pair.measure.kind != "accuracy":
            _, index = np.unique(pair.labels.astype(str), return_inverse=True)
            sizes = np.bincount(index, weights=np.ones(len(before)) if sizes is None else sizes)
            before, after = (np.bincount(index, weights=scores) for scores in (before, after))
        form = "log" if log else "plain"
        strata.append(Stratum(float(weight), before, after, sizes, scales[pair.measure.scale], form))
    return strata


def _above_chance(
    kind: str,
    baseline: float,
    drop: float,
    pairs: Mapping[str, Pair],
    strata: Sequence[Stratum],
    options: IntervalOptions,
) -> dict[str, Any]:
    """Chance, and the share of the accuracy above it that is lost.

    Clearly above: Wilson's lower bound is above it, or that of the interval over sets of documents.
    """
    if kind != "accuracy":
        return {"above_chance_reason": "not an accuracy"}
    sizes = [len(pair.doc_ids) for pair in pairs.values()]
    weights, chances = [s.weight for s in strata], [pair.chance for pair in pairs.values()]
    chance = float(sum(w * task_chance.mean() for w, task_chance in zip(weights, chances, strict=True)))
    if np.isnan(chance):
        return {"above_chance_reason": NO_CHOICES if baseline > 0 else NONE_RIGHT}
    labels = None if options.docs_by is None else [pair.labels for pair in pairs.values()]
    above = [s.baseline - task_chance for s, task_chance in zip(strata, chances, strict=True)]
    if _least_accuracy(baseline, strata, sizes, labels, options.level) <= chance:
        return {"chance": chance, "above_chance_reason": NOT_ABOVE}
    if labels is None:
        low, high = share_lost_interval(strata, chances, level=options.level)
    else:
        drops = [s.baseline - s.variant for s in strata]
        low, high = share_lost_over_clusters(drops, above, weights, labels, level=options.level)
    bounds = {"above_chance_low": low, "above_chance_high": high}
    return {"chance": chance, "above_chance_lost": drop / (baseline - chance), "above_chance_reason": None, **bounds}


def _least_accuracy(
    baseline: float,
    strata: Sequence[Stratum],
    sizes: Sequence[int],
    labels: Sequence[np.ndarray] | None,
    level: float,
) -> float:
    """The lower bound of the baseline's accuracy."""
    from statsmodels.stats.proportion import proportion_confint

    weights = [s.weight for s in strata]
    if labels is not None:
        low, _ = interval_over_clusters(*by_cluster([s.baseline for s in strata], weights, labels), level=level)
        if not np.isnan(low):
            return low
    # With unequal weights, the number of equally weighted documents that would say as much (Kish).
    n = 1 / sum(w**2 / size for w, size in zip(weights, sizes, strict=True))
    confidence: Any = proportion_confint(baseline * n, n, alpha=1 - level, method="wilson")
    return float(confidence[0])


def _margin_change(
    pairs: Mapping[str, Pair], weights: Sequence[float] | np.ndarray, options: IntervalOptions
) -> dict[str, float | None]:
    """Nothing unless each task has margins; documents without one are left out of their task's mean."""
    strata, labels = [], []
    for weight, pair in zip(weights, pairs.values(), strict=True):
        defined = ~(np.isnan(pair.margin_before) | np.isnan(pair.margin_after))
        if np.count_nonzero(defined) == 0:
            return {}
        strata.append(Stratum(float(weight), pair.margin_before[defined], pair.margin_after[defined]))
        labels.append(pair.labels[defined])
    mean, low, high = mean_change(strata, level=options.level)
    if options.docs_by is not None:
        changes = [s.variant - s.baseline for s in strata]
        low, high = interval_over_clusters(
            *by_cluster(changes, [s.weight for s in strata], labels), level=options.level
        )
    return {"margin_change": mean, "margin_low": low, "margin_high": high}


def _kl(run: Results, pairs: Mapping[str, Pair]) -> float:
    """Mean KL per scored token over the tasks, each weighted by its scored tokens; nan unless all were measured."""
    measured = run.provenance.get("kl_at_answers") or {}
    if not all(task in measured for task in pairs):
        return float("nan")
    positions = [measured[task]["positions"] for task in pairs]
    return float(np.average([measured[task]["kl"] for task in pairs], weights=positions))


def own_scores(pair: Pair, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return SCALES[pair.measure.scale](values if pair.sizes is None else values / pair.sizes)
