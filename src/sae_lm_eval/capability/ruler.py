"""Other degraders as a ruler: how far a ladder of edits of the model has to go to cost as much as a variant.

A ladder is edits of one kind in one run, such as 10% to 80% of the MLP weights pruned. Its costs are made monotone in
strength (isotonic regression), and the variant's cost is looked up on a monotone cubic through the rungs. Each draw
takes documents with replacement, the same ones of the variant and of every rung, and where a rung has several seeds one
of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from sae_lm_eval.capability.inversion import means_over_sets, resampled_means, too_few
from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.comparison.subsets import Cut
from sae_lm_eval.results.results import Results
from sae_lm_eval.results.variant_names import EDIT

FEWEST_RUNGS = 2
DRAWS = 1000
DRAWS_EACH, MOST_CATEGORIES = 400, 8  # of each category, of which there may be so many
FINE = 65  # points between two rungs at which the cubic is looked up
COLUMNS = (
    "variant",
    "kind",
    "ladder",
    "cost",
    "value",
    "strength",
    "low",
    "high",
    "level",
    "bound",
    "reason",
    "rungs",
    "seeds",
)
DOCUMENT, TEXT = ["task", "doc_id"], ["task", "document", "doc_hash"]
COSTS = {"drop": "drop", "ce_delta": "delta CE", "kl": "KL"}


@dataclass(frozen=True)
class Scale:
    """How strong an edit of a kind is: its argument, whether a greater one is stronger, and what leaves the model."""

    argument: str
    is_rising: bool
    nothing: float | None


SCALES = {
    "prune": (Scale("share", True, 0.0),),
    "lowrank": (Scale("share", False, 1.0), Scale("rank", False, None)),
    "quantize": (Scale("bits", False, None),),
    "noise": (Scale("std", True, 0.0),),
}


@dataclass(frozen=True)
class Ladder:
    """The rungs of one kind by rising strength: for each the value of the scale's argument, and results by seed."""

    kind: str
    arguments: Mapping[str, Any]
    scale: Scale
    rungs: Mapping[float, tuple[Results, ...]]

    @property
    def name(self) -> str:
        """The edit without its strength."""
        given = [f"{name}={value}" for name, value in self.arguments.items()]
        return "?".join([self.kind, *(["&".join(given)] if given else [])])


@dataclass(frozen=True, kw_only=True)
class Ruled:
    """The strength that costs as much, None for the `reason` or where only `bound` can be said; ends are None where
    the interval leaves the ladder.
    """

    strength: float | None = None
    low: float | None = None
    high: float | None = None
    bound: str | None = None
    reason: str | None = None


def ladders_of(variants: Sequence[Results]) -> list[Ladder]:
    """The ladders among variants: edits that differ in strength, or in strength and seed, alone."""
    ladders: dict[tuple[str, Scale, tuple[tuple[str, Any], ...]], dict[float, list[Results]]] = {}
    for results in variants:
        edit = results.provenance.get("edit") if results.provenance.get("splice") == EDIT else None
        for scale in SCALES.get(str((edit or {}).get("kind")), ()):
            if edit and isinstance(value := edit.get(scale.argument), int | float):
                arguments = tuple((name, edit[name]) for name in ("group", "weights") if edit.get(name))
                rungs = ladders.setdefault((edit["kind"], scale, arguments), {})
                rungs.setdefault(float(value), []).append(results)
                break
    out = []
    for (kind, scale, arguments), rungs in ladders.items():
        rungs = {value: tuple(runs) for value, runs in rungs.items() if value != scale.nothing}
        if len(rungs) >= FEWEST_RUNGS:
            ordered = sorted(rungs, reverse=not scale.is_rising)
            out.append(Ladder(kind, dict(arguments), scale, {value: rungs[value] for value in ordered}))
    return out


def ruler(comparison: Comparison, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """A row for each variant that is no edit, ladder and cost, with `COLUMNS`.

    Costs are the drop (a share of the score), delta CE and KL (nats/token) on the first text of fidelity. Of the last
    two there are none where the results do not say them by document.
    """
    rows: list[dict[str, Any]] = []
    if ladders_of(comparison.variants):
        texts = fidelity_texts(comparison)
        for cost, label in COSTS.items():
            values = _by_question(comparison) if cost == "drop" else by_document(texts, cost)
            rows += [{**row, "cost": label} for row in _on_ladders(comparison, values, draws=draws, rng=seed)]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def ruler_by_category(comparison: Comparison, *, draws: int = DRAWS_EACH, seed: int = 0) -> pd.DataFrame:
    """As `ruler`, by the drop of each category, or else of each of lm_eval's groups; `name` and `alias` say which.

    Of more than `MOST_CATEGORIES` there is nothing, since each has draws of its own.
    """
    cuts_by_section = {
        section: [cut for cut in comparison.cuts if cut.section == section] for section in ("category", "group")
    }
    outer = {cut.parent for cut in cuts_by_section["group"]}
    cuts = cuts_by_section["category"] or [cut for cut in cuts_by_section["group"] if cut.name not in outer]
    rows: list[dict[str, Any]] = []
    if ladders_of(comparison.variants) and 1 < len(cuts) <= MOST_CATEGORIES:
        for cut in cuts:
            values = _by_question(comparison, cut)
            labels = {"cost": COSTS["drop"], "name": cut.name, "alias": cut.alias}
            rows += [{**row, **labels} for row in _on_ladders(comparison, values, draws=draws, rng=seed)]
    return pd.DataFrame(rows, columns=[*COLUMNS, "name", "alias"], dtype=object)


def _on_ladders(comparison: Comparison, values: Mapping[str, pd.Series], **drawn: int) -> Iterator[dict[str, Any]]:
    """A row for each variant that is no edit and each ladder, of costs by document."""
    for results in comparison.variants:
        if results.provenance.get("splice") == EDIT:
            continue
        for ladder in ladders_of(comparison.variants):
            names = [results.name, *(edit.name for rung in ladder.rungs.values() for edit in rung)]
            if any(name not in values for name in names):
                continue
            own = values[results.name]
            rungs = [[values[edit.name] for edit in rung] for rung in ladder.rungs.values()]
            estimate = _paired(ladder, rungs, own, comparison, **drawn)
            row = {"variant": results.name, "kind": ladder.kind, "ladder": ladder.name, "value": float(own.sum())}
            yield {
                **row,
                **vars(estimate),
                "level": comparison.level,
                "rungs": len(rungs),
                "seeds": min(map(len, rungs)),
            }


def _paired(
    ladder: Ladder, rungs: Sequence[Sequence[pd.Series]], own: pd.Series, comparison: Comparison, **drawn: int
) -> Ruled:
    """As `ruled`, of costs by document, which have to be the same documents."""
    if not all(losses.index.equals(own.index) for rung in rungs for losses in rung):
        return Ruled(reason="the edits were measured on other documents")
    tasks, sets = own.index.get_level_values("task"), _sets(comparison, own.index)
    strata = [np.flatnonzero(tasks == task) for task in tasks.unique()]
    costs = [np.array(rung) for rung in rungs]
    return ruled(ladder, costs, own.to_numpy(), strata, level=comparison.level, sets=sets, **drawn)


def ruled(
    ladder: Ladder,
    costs: Sequence[np.ndarray],
    own: np.ndarray,
    strata: Sequence[np.ndarray],
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    rng: np.random.Generator | int = 0,
    sets: np.ndarray | None = None,
) -> Ruled:
    """Where the ladder costs as much as `own` (documents), of which the sum is the cost; `costs` are (seeds, documents)
    of each rung. Documents are resampled within `strata`, or whole `sets` of them.

    Refused where too few documents are known, where a cost is not finite, and where the strongest rung's cost is not
    clearly above 0.
    """
    if few := too_few(len(own), sets):
        return Ruled(reason=few)
    if not all(np.isfinite(values).all() for values in (own, *costs)):
        return Ruled(reason="a cost of some documents is not finite")
    generator, tail = np.random.default_rng(rng), (1 - level) / 2
    table = np.vstack([own, *costs])
    if sets is None:
        drawn = resampled_means(table, strata, draws, generator)
    else:
        drawn = means_over_sets(table, np.full(len(own), 1 / len(own)), sets, draws, generator)
    ends = np.cumsum([1, *map(len, costs)])
    picked = [drawn[np.arange(draws), generator.integers(start, end, draws)] for start, end in pairwise(ends)]
    if np.quantile(picked[-1], tail) <= 0:
        return Ruled(reason="the strongest rung costs nothing that can be told from 0")
    strengths = [value if ladder.scale.is_rising else -value for value in ladder.rungs]
    nothing = ladder.scale.nothing
    start = None if nothing is None else nothing if ladder.scale.is_rising else -nothing
    look_up = partial(_strength, strengths, start)
    at = look_up([float(values.sum(1).mean()) for values in costs], float(own.sum()))
    if math.isinf(at):
        side = "less" if (at < 0) == ladder.scale.is_rising else "more"  # of the argument, as fewer bits are stronger
        return Ruled(bound=f"{side} than {[*ladder.rungs][0 if at < 0 else -1]:g}")
    places = np.array([look_up([float(column[i]) for column in picked], float(drawn[i, 0])) for i in range(draws)])
    low, high = np.quantile(places, [tail, 1 - tail], method="inverted_cdf")
    sign = 1 if ladder.scale.is_rising else -1
    bounds = [None if math.isinf(end) else sign * float(end) for end in (low, high)]
    return Ruled(strength=sign * at, low=bounds[0], high=bounds[1])


def _strength(strengths: Sequence[float], start: float | None, costs: Sequence[float], cost: float) -> float:
    """Between the rungs, where the monotone cubic through them has the cost (Fritsch & Butland 1984).

    -inf below them where nothing is known to cost nothing, inf above them.
    """
    pooled = isotonic_regression(np.array(costs))
    blocks = np.asarray(pooled.blocks)
    x = np.add.reduceat(np.array(strengths), blocks[:-1]) / np.diff(blocks)
    y = pooled.x[blocks[:-1]]
    if start is not None:
        above = y > 0
        x, y = np.concatenate([[start], x[above]]), np.concatenate([[0.0], y[above]])
        cost = max(cost, 0.0)
    if not y[0] <= cost <= y[-1] or len(y) < 2:
        return -math.inf if cost < y[0] else math.inf if cost > y[-1] else float(x[0])
    at = int(np.searchsorted(y, cost).clip(1, len(y) - 1))
    fine = np.linspace(x[at - 1], x[at], FINE)
    return float(np.interp(cost, PchipInterpolator(x, y)(fine), fine))


def _by_question(comparison: Comparison, cut: Cut | None = None) -> dict[str, pd.Series]:
    """Drops of each variant by task and document, which add up to the drop, of the tasks that count in it.

    Of a `cut` these are its own documents, each counting alike.
    """
    counted = [task for each_cut in comparison.cuts if each_cut.section == "overall" for task in each_cut.tasks]
    if not counted:
        return {}
    drops: dict[str, pd.Series] = {}
    documents: Any = comparison.documents()
    inside = [task for task in counted if cut is None or task in cut.tasks]
    documents = documents[documents["task"].isin(inside)]
    if cut is not None and cut.chosen is not None:
        pairs = zip(documents["task"], documents["doc_id"], strict=True)
        documents = documents[[number in cut.chosen.get(task, ()) for task, number in pairs]]
    for name, part in documents.groupby("variant"):
        lost = part.set_index(DOCUMENT)["score_lost"].astype(float)
        if np.isfinite(lost).all():
            drops[str(name)] = lost / len(lost)
    return drops


def _sets(comparison: Comparison, documents: pd.Index) -> np.ndarray | None:
    """The sets that questions belong to; None for documents of a text, and where nothing was said of sets."""
    if comparison.docs_by is None or documents.names != DOCUMENT:
        return None
    every = comparison.documents()
    first = every[every["variant"] == comparison.variants[0].name].set_index(DOCUMENT)["set"]
    return first.reindex(documents).to_numpy()


def fidelity_texts(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """The first text of fidelity, of each variant that has it."""
    tasks = [task for results in comparison.variants for task in results.fidelity_tasks]
    having = [results for results in comparison.variants if tasks and tasks[0] in results.fidelity_tasks]
    return {results.name: results.samples(tasks[0]) for results in having}


def by_document(texts: Mapping[str, pd.DataFrame], cost: str) -> dict[str, pd.Series]:
    """As `_by_question`, of what each variant's text says of a cost."""
    read: dict[str, Any] = sums_by_document(texts, cost)
    return {name: sums["sum"] / sums["tokens"].sum() for name, sums in read.items()}


def sums_by_document(texts: Mapping[str, pd.DataFrame], cost: str) -> dict[str, pd.DataFrame]:
    """By variant, for each document of its text the `sum` of a cost over the `tokens` that are scored, in nats.

    Variants whose samples do not say it by document are left out.
    """
    read = {name: _of_text(samples, cost) for name, samples in texts.items()}
    return {name: sums for name, sums in read.items() if sums is not None}


def _of_text(samples: pd.DataFrame, cost: str) -> pd.DataFrame | None:
    if cost not in samples or not all(isinstance(entry, list) and len(entry) > 2 for entry in samples[cost]):
        return None
    table = np.array(samples[cost].tolist(), dtype=float)  # document, sums, tokens
    total = table[:, 1] - table[:, 2] if cost == "ce_delta" else table[:, 1]
    index = pd.MultiIndex.from_arrays([["text"] * len(table), table[:, 0], samples["doc_hash"]], names=TEXT)
    return pd.DataFrame({"sum": total, "tokens": table[:, -1]}, index).sort_index()
