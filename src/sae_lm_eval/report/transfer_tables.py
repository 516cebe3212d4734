"""Variants in rows, models in columns: drops, losses on text, and how much more a variant costs than at home."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.comparison.transfer_gap import gap
from sae_lm_eval.report.drop_tables import (
    DropRow,
    Significance,
    baseline_cell,
    chance_mark,
    drop_cell,
    how_measured,
)
from sae_lm_eval.report.fidelity_tables import GROUP, Fidelity
from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    ReportTable,
    TableColumn,
    ascii_slug,
    fixed_decimals,
    is_number,
    listing,
    number_cell,
    text_cell,
)
from sae_lm_eval.report.summary_table import BASELINE, OF_TEXT, cost_cell

HOME = "\N{BULLET}"  # behind a drop in the model that the dictionary was trained on


@dataclass(frozen=True)
class Matrix:
    """What a table of variants by models is made of: by model and variant the row of a section and name.

    `p_adjusted` of the rows is Holm's over all of them.
    """

    section: str
    name: str
    cells: Mapping[str, Mapping[str, DropRow]]
    names: Mapping[str, str]
    controls: frozenset[str]
    own: Mapping[str, frozenset[str]]
    level: float


def matrix_table(matrix: Matrix) -> ReportTable:
    """First the accuracy of each model untouched, then the drops of each variant, and of the controls."""
    cells = matrix.cells
    tests = sum(len(by_variant) for by_variant in cells.values())
    significance = Significance(matrix.level, f"Holm's adjustment over the {tests} tests of this table.")
    rows = [row for by_variant in cells.values() for row in by_variant.values()]
    body = [(text_cell(BASELINE), *(_baseline(by_variant) for by_variant in cells.values()))]
    variants = [name for name in matrix.names if any(name in by_variant for by_variant in cells.values())]
    for name in variants:
        drops = (
            _with_home(drop_cell(by_variant.get(name), significance), name in matrix.own.get(m, ()))
            for m, by_variant in cells.items()
        )
        body.append((text_cell(matrix.names[name]), *drops))
    ends = (1, 1 + sum(name not in matrix.controls for name in variants))
    where = "over all tasks" if matrix.section == "overall" else f"in {next(iter(rows)).alias}"
    at_home = any(cell.text.endswith(HOME) for row in body for cell in row)
    caption = (
        f"First row: accuracy of each model untouched, in percent. Below: drop {where} in percentage points against "
        f"the same model untouched, positive where the variant is worse, with its {significance.level:.0%} interval."
        f"{f' {HOME}: the model that the dictionary was trained on.' if at_home else ''} * adjusted p < "
        f"{1 - significance.level:.2g}: {significance.family} {how_measured(rows, significance)}{chance_mark(rows)}"
    )
    first = matrix.section == "overall"
    return ReportTable(
        "summary" if first else f"transfer-{matrix.section}-{ascii_slug(matrix.name)}",
        "What each variant costs in each model" if first else f"{next(iter(rows)).alias}: drop by model",
        caption,
        (TableColumn("variant", "left"), *map(TableColumn, cells)),
        tuple(body),
        blocks=tuple(sorted({at for at in ends if 0 < at < len(body)})),
    )


def adjusted(cells: Mapping[str, Mapping[str, DropRow]]) -> dict[str, dict[str, DropRow]]:
    """The rows of a table of variants by models with p adjusted over all of them, by Holm's method."""
    from statsmodels.stats.multitest import multipletests

    places = [(model, variant) for model, by_variant in cells.items() for variant in by_variant]
    p_values = [cells[model][variant].p for model, variant in places]
    adjusted: Any = multipletests([1.0 if p is None else p for p in p_values], method="holm")[1]
    out: dict[str, dict[str, DropRow]] = {model: {} for model in cells}
    for (model, variant), p in zip(places, adjusted, strict=True):
        out[model][variant] = replace(cells[model][variant], p_adjusted=float(p))
    return out


def _baseline(by_variant: Mapping[str, DropRow]) -> Cell:
    return baseline_cell(next(iter(by_variant.values()))) if by_variant else Cell(NA)


def _with_home(cell: Cell, at_home: bool) -> Cell:
    return replace(cell, text=f"{cell.text} {HOME}") if at_home and cell.text != NA else cell


def gap_table(
    comparisons: Mapping[str, Comparison], own: Mapping[str, frozenset[str]], names: Mapping[str, str]
) -> list[ReportTable]:
    """For each variant with a model of its own among them, how much more it costs in each other one."""
    body = []
    for name, shown in names.items():
        homes = [model for model in comparisons if name in own.get(model, ())]
        for home in homes[:1]:
            for model, comparison in comparisons.items():
                measured = not (comparison.drops.empty or comparisons[home].drops.empty)
                if model in homes or not measured or name not in {results.name for results in comparison.variants}:
                    continue
                estimate, n = gap(comparisons[home], comparison, name)
                bounds = ""
                if is_number(estimate.low):
                    bounds = f"[{fixed_decimals(estimate.low)}, {fixed_decimals(estimate.high)}]"
                value = number_cell(estimate.value, fixed_decimals(estimate.value), bounds)
                body.append((*map(text_cell, (shown, home, model)), number_cell(n, f"{n:,}"), value))
    if not body:
        return []
    first = next(iter(comparisons.values()))
    interval = f"{first.level:.0%} interval"
    how = f"Student's {interval}" if first.docs_by is None else f"a cluster-robust {interval}, by {first.docs_by}"
    columns = (
        *(TableColumn(head, "left") for head in ("variant", "trained on", "in")),
        *(TableColumn(head) for head in ("n", "more")),
    )
    caption = (
        "How much more a variant costs than in the model that its dictionaries were trained on: the difference of the "
        f"two drops in percentage points, on the questions that both were asked, with {how}."
    )
    return [ReportTable("transfer-gap", "More than at home", caption, columns, tuple(body))]


def loss_tables(fidelity: Mapping[str, Fidelity], names: Mapping[str, str]) -> list[ReportTable]:
    """What was measured on the first text of each model, of which all have the same: variants by models."""
    texts = {model: next((task for _, task in metrics), None) for model, metrics in fidelity.items()}
    tasks = [text for text in texts.values() if text is not None]
    if not tasks or len(set(tasks)) > 1:
        return []
    text, tables = tasks[0], []
    for heading, metric in OF_TEXT:
        measured = {
            model: {
                variant: by_metric[metric]
                for (variant, task), by_metric in metrics.items()
                if task == text and metric in by_metric
            }
            for model, metrics in fidelity.items()
        }
        if not any(
            measurement.value is not None for by_variant in measured.values() for measurement in by_variant.values()
        ):
            continue
        body = [
            (text_cell(shown), *(cost_cell(by_variant.get(name)) for by_variant in measured.values()))
            for name, shown in names.items()
            if any(name in by_variant for by_variant in measured.values())
        ]
        unit = "as a fraction of the model's own training compute" if metric == "effective_compute" else "in nats/token"
        caption = f"{heading[0].upper()}{heading[1:]} on {text.removeprefix(GROUP)} in {listing(fidelity)}, {unit}."
        columns = (TableColumn("variant", "left"), *map(TableColumn, fidelity))
        title = f"{heading[0].upper()}{heading[1:]} in each model"
        tables.append(ReportTable(f"transfer-{ascii_slug(metric)}", title, caption, columns, tuple(body)))
    return tables
