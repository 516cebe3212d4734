"""The one table of a comparison: variants in rows, categories in columns, and what else each variant costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.report.drop_tables import (
    DropRow,
    Significance,
    baseline_cell,
    chance_mark,
    drop_cell,
    how_measured,
    main_metric,
    section_of,
)
from sae_lm_eval.report.fidelity_tables import GROUP, Fidelity, MetricValue
from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    ReportTable,
    TableColumn,
    alternatives,
    is_number,
    number_cell,
    significant,
    text_cell,
)

# By how many columns of tasks a table is still read at a glance.
MOST_TASKS = 8
BY = ("group", "category", "task", "overall")
# Of running text: heading of the column, metric.
OF_TEXT = (("delta CE", "ce_delta"), ("KL", "kl"), ("effective compute", "effective_compute"))
BASELINE = "baseline"
EQUIVALENT = (
    "equivalent compute: the fraction of it that buys what is left of the margins, or else of the scores, of all tasks"
)


@dataclass(frozen=True)
class Cost:
    """A column of what else a variant costs, by variant; `meaning` says on what it was measured, and in which unit."""

    heading: str
    meaning: str
    measured: Mapping[str, MetricValue]

    @property
    def has_errors(self) -> bool:
        return any(measurement.stderr for measurement in self.measured.values())


@dataclass(frozen=True)
class Summary:
    """What the table is made of: the rows of `by` and of all tasks, the variants, controls apart, and what else they
    cost; and the rows of each task."""

    rows: tuple[DropRow, ...]
    overall: tuple[DropRow, ...]
    variants: tuple[str, ...]
    controls: tuple[str, ...]
    costs: tuple[Cost, ...]
    fidelity: Fidelity
    by: str
    tasks: tuple[DropRow, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """What stands over the columns, by the name of the group, category or task."""
        return {row.name: row.alias for row in self.rows}


def summarise(
    rows: Sequence[DropRow],
    variants: Sequence[str],
    controls: Sequence[str],
    costs: Sequence[Cost],
    fidelity: Fidelity,
    by: str | None = None,
) -> Summary:
    """The table's content. Without `by`: the given categories, else lm_eval's groups, else the tasks if they are few.

    Raises `UserError` where there is nothing of what `by` asks for.
    """
    accuracies = main_metric(rows)
    overall = section_of(accuracies, "overall")
    by_section = {section: section_of(accuracies, section) for section in ("category", "task")}
    outer = {row.parent for row in section_of(rows, "group")}
    most = max((row.tasks for row in section_of(accuracies, "task") + overall), default=0)
    groups = [row for row in section_of(accuracies, "group") if row.name not in outer]
    # A group of everything says what the overall drop says.
    apart = [row for row in groups if row.tasks < most or len({group.name for group in groups}) > 1]
    by_section["group"], by_section["overall"] = (groups if by == "group" else apart), []
    if by is None:
        few = 0 < len({row.name for row in by_section["task"]}) <= MOST_TASKS
        by = next((section for section in ("category", "group") if by_section[section]), "task" if few else "overall")
    one_of(by, BY, "by")
    if by != "overall" and not by_section[by]:
        sections = [section for section in ("group", "category", "task") if by_section[section]]
        other = f"--by {' or --by '.join([*sections, 'overall'])} has something" if sections or overall else ""
        why = {"category": "give --categories FILE", "group": "lm_eval scored no group of these tasks"}.get(by, "")
        raise UserError(f"There is nothing to show by {by}: {'; '.join(filter(None, [why, other]))}.")
    return Summary(
        tuple(by_section[by]),
        tuple(overall),
        tuple(variants),
        tuple(controls),
        tuple(costs),
        fidelity,
        by,
        tuple(by_section["task"]),
    )


def summary_table(summary: Summary, significance: Significance) -> ReportTable:
    """Rows: the baseline's accuracy (percent), the drops (pp) of each variant, then those of the controls."""
    names, costs = summary.names, summary.costs
    shown = {(row.variant, row.name): row for row in (*summary.rows, *summary.overall)}
    keys = [*names, *(["overall"] if summary.overall else [])]
    first = {name: next(row for (_, row_name), row in shown.items() if row_name == name) for name in keys}
    untouched = (text_cell(BASELINE), *(baseline_cell(first[name]) for name in keys), *(Cell("") for _ in costs))
    body = [untouched] if keys else []
    for variant in (*summary.variants, *summary.controls):
        measured = (cost_cell(cost.measured.get(variant)) for cost in costs)
        body.append(
            (text_cell(variant), *(drop_cell(shown.get((variant, name)), significance) for name in keys), *measured)
        )
    columns = (
        TableColumn("variant", "left"),
        *map(TableColumn, (*names.values(), *(["overall"] if summary.overall else []))),
    )
    columns += tuple(TableColumn(cost.heading) for cost in costs)
    starts = len(body) - len(summary.controls), len(body) - len(summary.controls) - len(summary.variants)
    blocks = sorted({at for at in starts if 0 < at < len(body)})
    return ReportTable(
        "summary",
        "What each variant loses",
        _caption(summary, significance),
        columns,
        tuple(body),
        blocks=tuple(blocks),
    )


def costs_of(fidelity: Fidelity, equivalents: pd.DataFrame | None, names: Mapping[str, str]) -> list[Cost]:
    """The columns in which anything was measured: of the first text with fidelity, then of all tasks by a family.

    `equivalents` are those of `capability.family`, under the names of the results, which lead to those shown.
    """
    text = next((task for _, task in fidelity), "")
    on = {variant: by_metric for (variant, task), by_metric in fidelity.items() if task == text}
    costs = []
    for heading, metric in OF_TEXT:
        measured = {variant: by_metric[metric] for variant, by_metric in on.items() if metric in by_metric}
        unit = "in nats/token"
        if metric == "effective_compute":
            laws = alternatives(measurement.law for measurement in measured.values())
            unit = f"as a fraction of the training compute, by {laws}"
        costs.append(Cost(heading, f"{heading} on {text.removeprefix(GROUP)}, {unit}", measured))
    if equivalents is not None:
        costs.append(Cost("equivalent compute", EQUIVALENT, _of_all_tasks(equivalents, names)))
    return [cost for cost in costs if any(measurement.value is not None for measurement in cost.measured.values())]


def _of_all_tasks(equivalents: pd.DataFrame, names: Mapping[str, str]) -> dict[str, MetricValue]:
    """By variant; of its measures the first with a fraction."""
    measured: dict[str, MetricValue] = {}
    for row in equivalents.loc[equivalents["section"] == "overall"].to_dict("records"):
        value, low, high = (float(row[name]) if is_number(row[name]) else None for name in ("fraction", "low", "high"))
        variant = names[row["variant"]]
        if variant not in measured or measured[variant].value is None:
            measured[variant] = MetricValue(
                variant, "overall", "equivalent_compute", value, None, "fraction", low, high
            )
    return measured


def cost_cell(measurement: MetricValue | None) -> Cell:
    """The value; below it, its interval or else its standard error."""
    if measurement is None or measurement.value is None:
        return Cell(NA)
    detail = f"± {significant(measurement.stderr, 2)}" if measurement.stderr else ""
    if measurement.low is not None and measurement.high is not None:
        detail = f"[{significant(measurement.low)}, {significant(measurement.high)}]"
    return number_cell(measurement.value, f"{significant(measurement.value)}{measurement.mark}", detail)


def _caption(summary: Summary, significance: Significance) -> str:
    shown = (*summary.rows, *summary.overall)
    parts = []
    if shown:
        parts.append(
            "First row: accuracy of the untouched model, in percent. Below: drop in percentage points, positive if the "
            f"variant is worse, with its {significance.level:.0%} interval. * adjusted p < "
            f"{1 - significance.level:.2g}: {significance.family} {how_measured(shown, significance)}"
            f"{chance_mark(shown)}"
        )
    if summary.costs:
        meanings = [cost.meaning for cost in summary.costs]
        meanings += ["±: standard error"] if any(cost.has_errors for cost in summary.costs) else []
        cost_text = "; ".join(meanings)
        parts.append(f"{cost_text[:1].upper()}{cost_text[1:]}.")
    if summary.controls:
        parts.append(f"Controls, without a dictionary's reconstruction: {', '.join(summary.controls)}.")
    return " ".join(parts)


def summary_frame(summary: Summary) -> pd.DataFrame:
    """The table's numbers, unrounded: for each column of drops also `low`, `high` (pp) and the adjusted `p`.

    For what else a variant costs the bounds too, or else the standard error, as far as there are any.
    """
    shown = {(row.variant, row.name): row for row in (*summary.rows, *summary.overall)}
    names: Mapping[str, str] = {**summary.names, **({"overall": "overall"} if summary.overall else {})}
    first = {name: next(row for (_, row_name), row in shown.items() if row_name == name) for name in names}
    untouched = {alias: 100 * first[name].baseline for name, alias in names.items()}
    records: list[dict[str, object]] = [{"variant": BASELINE, **untouched}]
    for variant in (*summary.variants, *summary.controls):
        record: dict[str, object] = {"variant": variant}
        for name, alias in names.items():
            row = shown.get((variant, name))
            parts = (row.drop, row.low, row.high, row.p_adjusted) if row else (None,) * 4
            record |= dict(zip((alias, f"{alias} low", f"{alias} high", f"{alias} p"), parts, strict=True))
        for cost in summary.costs:
            measurement = cost.measured.get(variant)
            record[cost.heading] = measurement.value if measurement else None
            for part in ("stderr", "low", "high"):
                if any(getattr(other, part) is not None for other in cost.measured.values()):
                    record[f"{cost.heading} {part}"] = getattr(measurement, part) if measurement else None
        records.append(record)
    columns = list(dict.fromkeys(key for record in reversed(records) for key in record))
    return pd.DataFrame(records, columns=columns)
