"""What else costs as much as a dictionary: its table, and a sentence of each variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sae_lm_eval.capability.ruler import COSTS, SCALES
from sae_lm_eval.report.formatting import NA, Cell, ReportTable, TableColumn, number_cell, text_cell

MOST_SENTENCES, MOST_EDITS = 3, 2  # variants, and edits of each, in the sentences; the table has all
IN_SENTENCES = ("drop", "KL")
OF_KIND = {
    "prune": "pruning {} of {}",
    "quantize": "rounding {1} to {0} bits",
    "lowrank": "leaving {} of the rank of {}",
    "noise": "noise of {} of the size of {}",
}
RANDOM = ("noise",)  # edits that depend on a seed
KINDS = (*OF_KIND,)
WEIGHTS = {"mlp": "the MLP weights", "attention": "the attention weights", "all": "all weights"}


def ruler_table(frame: pd.DataFrame, names: Mapping[str, str]) -> list[ReportTable]:
    """A row for each variant and ladder, a column for each cost; `names` lead to those shown."""
    if frame.empty:
        return []
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in frame.to_dict("records"):
        rows.setdefault((names[str(row["variant"])], str(row["ladder"])), {})[str(row["cost"])] = row
    costs = [cost for cost in COSTS.values() if any(cost in by_cost for by_cost in rows.values())]
    body = [
        (text_cell(variant), text_cell(ladder), *(_cell(by_cost.get(cost)) for cost in costs))
        for (variant, ladder), by_cost in rows.items()
    ]
    level = float(frame["level"].iloc[0])
    caption = (
        "How strong an edit of the model costs as much as each variant, by its drop in accuracy and by delta CE and KL "
        "on text: read between the rungs of a ladder of edits, made monotone. prune: share of the weights that become "
        "0; lowrank: share of the rank that is left; quantize: bits; noise: its size as a share of the weights'. "
        f"Below, the {level:.0%} interval, over documents (the same of the variant and the edits){_over_seeds(frame)}; "
        "an open end lies beyond the ladder."
    )
    columns = (
        TableColumn("variant", "left"),
        TableColumn("ladder", "left"),
        *(TableColumn(f"as much {cost}") for cost in costs),
    )
    return [ReportTable("ruler", "What else costs as much", caption, columns, tuple(body))]


def category_ruler_table(frame: pd.DataFrame, names: Mapping[str, str]) -> list[ReportTable]:
    """A row for each variant and ladder, a column for each category; `names` lead to those shown."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in frame.to_dict("records"):
        rows.setdefault((names[str(row["variant"])], str(row["ladder"])), {})[str(row["name"])] = row
    if not any(
        row["strength"] is not None or row["bound"] for by_category in rows.values() for row in by_category.values()
    ):
        return []
    columns = {str(row["name"]): str(row["alias"]) for row in frame.to_dict("records")}
    body = [
        (text_cell(variant), text_cell(ladder), *(_cell(by_category.get(name)) for name in columns))
        for (variant, ladder), by_category in rows.items()
    ]
    level = float(frame["level"].iloc[0])
    caption = (
        "How strong an edit of the model costs as much as each variant by its drop in accuracy, category by category, "
        f"each question counting alike; units as in the table above. Below, the {level:.0%} interval, over questions"
        f"{_over_seeds(frame)}. n/a: the drop of the strongest edit cannot be told from 0, or questions are too few."
    )
    heads = (TableColumn("variant", "left"), TableColumn("ladder", "left"), *map(TableColumn, columns.values()))
    return [ReportTable("ruler-categories", "What else costs as much, by category", caption, heads, tuple(body))]


def _over_seeds(frame: pd.DataFrame) -> str:
    """What the interval covers of the seeds of random edits; edits without a seed have nothing to cover there."""
    seeds = {int(row["seeds"]) for row in frame.to_dict("records") if row["kind"] in RANDOM}
    if not seeds:
        return ""
    if min(seeds) > 1:
        return " and the seeds of noise"
    return (
        ", and not what another seed of the noise would cost"
        if max(seeds) == 1
        else " and the seeds of noise where a ladder has several"
    )


def ruler_sentences(frame: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """Of the first variants: `By its drop k4 costs as much as pruning 35% (31% to 40%) of the MLP weights.`"""
    sentences, every = [], frame.to_dict("records")
    for variant in list(dict.fromkeys(frame["variant"]))[:MOST_SENTENCES]:
        parts: list[str] = []
        for cost in IN_SENTENCES:
            own = (row for row in every if (row["variant"], row["cost"]) == (variant, cost))
            rows = [row for row in own if row["strength"] is not None]
            rows.sort(key=lambda row: KINDS.index(row["kind"]))
            if rows:
                edits = " or ".join(map(_edit, rows[:MOST_EDITS]))
                first = f"By its {cost} {names[str(variant)]} costs as much as {edits}"
                parts.append(f"by its {cost}, as {edits}" if parts else first)
        if parts:
            sentences.append(f"{'; '.join(parts)}.")
    return sentences


def _edit(row: Mapping[str, Any]) -> str:
    kind, (_, _, arguments) = str(row["kind"]), str(row["ladder"]).partition("?")
    weights = dict(pair.split("=") for pair in arguments.split("&") if pair).get("weights", "all")
    return OF_KIND[kind].format(f"{_strength(kind, row['strength'])} ({_bounds(row)})", WEIGHTS[weights])


def _bounds(row: Mapping[str, Any]) -> str:
    """From the smaller to the greater value of the edit's argument; an end that is None lies beyond the ladder."""
    kind = str(row["kind"])
    first, last = (None if row[end] is None else _strength(kind, row[end]) for end in ("low", "high"))
    if not SCALES[kind][0].is_rising:  # the stronger edit has the smaller value
        first, last = last, first
    if first is None:
        return "no bound" if last is None else f"up to {last}"
    return f"{first} or more" if last is None else f"{first} to {last}"


def _strength(kind: str, value: float) -> str:
    if kind == "quantize":
        return f"{value:.1f}"
    return f"{value:.0%}" if kind != "lowrank" or value <= 1 else f"{value:.0f}"


def _cell(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell(NA)
    if row["strength"] is None:
        return Cell(str(row["bound"])) if row["bound"] else Cell(NA, None, str(row["reason"]))
    return number_cell(row["strength"], _strength(str(row["kind"]), row["strength"]), _bounds(row))
