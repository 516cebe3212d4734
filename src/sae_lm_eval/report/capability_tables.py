"""Equivalent compute by task, group and category, where the family of `curve --tasks` lies beside the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from sae_lm_eval.capability.family import (
    MEASURES,
    CategoryCurve,
    beside,
    category_curves,
    cut_scores,
    equivalent_text,
    equivalents,
    read_task_family,
)
from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.errors import UserError
from sae_lm_eval.report.drop_tables import DropRow
from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    ReportTable,
    TableColumn,
    fixed_decimals,
    number_cell,
    significant,
    text_cell,
)

LONG = 24  # rows of a table that may need to span pages


class Equivalents(NamedTuple):
    """What `capability.family.equivalents` found, None without a family or where it is none of this run; the curves
    that it was read from; and in place of both a note."""

    frame: pd.DataFrame | None = None
    curves: tuple[CategoryCurve, ...] = ()
    notes: tuple[str, ...] = ()


def equivalents_of(comparison: Comparison) -> Equivalents:
    """By the family that lies beside the run."""
    path = beside(comparison.baseline)
    if path is None or not comparison.cuts:
        return Equivalents()
    try:
        measured = cut_scores(comparison, read_task_family(path))
        return Equivalents(equivalents(measured, level=comparison.level), tuple(category_curves(measured)))
    except UserError as error:
        return Equivalents(notes=(f"No equivalent compute is shown: {error}",))


def equivalent_tables(frame: pd.DataFrame | None, rows: list[DropRow], names: Mapping[str, str]) -> list[ReportTable]:
    """A row for each variant and section, its drop beside what is left of the compute by each measure.

    `rows` are those of the drops under the names shown, to which `names` lead from those of the results.
    """
    if frame is None or frame.empty:
        return []
    drops = {(row.variant, row.section, row.name): row for row in rows if row.kind == "accuracy" and row.primary}
    by_measure: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in frame.to_dict("records"):
        key = (names[row["variant"]], str(row["section"]), str(row["name"]))
        by_measure.setdefault(key, {"alias": row["alias"]})[str(row["measure"])] = row
    body = []
    for (variant, section, name), entry in by_measure.items():
        drop = drops.get((variant, section, name))
        where = section if section == "overall" else f"{section} {entry['alias']}"
        cells = [Cell(NA) if drop is None else number_cell(drop.drop, fixed_decimals(drop.drop))]
        cells += [_cell(entry.get(measure)) for measure in MEASURES.values()]
        body.append((text_cell(variant), text_cell(where), *cells))
    models = frame["models"].iloc[0]
    caption = (
        "Drop in accuracy in percentage points; beside it the share of the original's training compute after which a "
        f"curve of {models} models on the same prompts has the spliced model's score: by the margin of the right "
        "answer to the best wrong one, and by the task's score. Below, the interval, over documents, the same of every "
        "model; it does not cover what another training would have given. What the loss says of the same splice is the "
        "effective compute."
    )
    columns = (
        *(TableColumn(head, "left") for head in ("variant", "name")),
        *map(TableColumn, ("drop", "equivalent compute, by margin", "equivalent compute, by score")),
    )
    extent = "short" if len(body) <= LONG else "long"
    return [ReportTable("equivalent-compute", "Equivalent compute", caption, columns, tuple(body), extent)]


def _cell(row: dict[str, Any] | None) -> Cell:
    """The fraction with its interval below; the bound, or n/a with the reason below."""
    if row is None:
        return Cell(NA)
    if row["fraction"] is None:
        return Cell(str(row["bound"]), None) if row["bound"] else Cell(NA, None, str(row["reason"]))
    return number_cell(row["fraction"], significant(row["fraction"], 2), equivalent_text(row).partition(" ")[2])


def published_table(frame: pd.DataFrame, names: Mapping[str, str]) -> list[ReportTable]:
    """By Pythia's published scores; `names` lead from those of the results to those shown."""
    if frame.empty:
        return []
    body = [
        (
            *map(text_cell, (names[str(row["variant"])], row["task"])),
            *(number_cell(100 * row["drop"], fixed_decimals(100 * row["drop"])), _cell({**row, "bound": None})),
        )
        for row in frame.to_dict("records")
    ]
    caption = (
        "Drop in percentage points, and the share of the original's training after which it had lost as much, by the "
        "accuracies over training that EleutherAI/pythia publishes (Apache-2.0): zero-shot, on other prompts than "
        "today's, by an earlier version of lm_eval, and unpaired. Below, the interval, over the sampling errors of "
        "these accuracies and of the drop. `sae-lm-eval curve --tasks` measures a curve on the run's own prompts."
    )
    heads = (
        TableColumn("variant", "left"),
        TableColumn("task", "left"),
        TableColumn("drop"),
        TableColumn("equivalent compute"),
    )
    return [ReportTable("published-compute", "Equivalent compute by published scores", caption, heads, tuple(body))]
