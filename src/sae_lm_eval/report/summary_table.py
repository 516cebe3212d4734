"""The one table of a comparison: variants in rows, categories in columns, and what else each variant costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.report.drop_tables import (
    Row,
    Told,
    baseline_cell,
    chance_mark,
    drop_cell,
    how_measured,
    main_metric,
    section_of,
)
from sae_lm_eval.report.fidelity_tables import GROUP, Fidelity, Measured
from sae_lm_eval.report.formatting import NA, Cell, Column, Table, number_cell, significant, text_cell

# By how many columns of tasks a table is still read at a glance.
MOST_TASKS = 8
BY = ("group", "category", "task", "overall")
# Of running text: heading of the column, metric, digits.
COSTS = (("delta CE", "ce_delta", 3), ("KL", "kl", 3), ("effective compute", "effective_compute", 3))
BASELINE = "baseline"


@dataclass(frozen=True)
class Summary:
    """What the table is made of: the rows of `by` and of all tasks, and the variants, controls apart."""

    rows: tuple[Row, ...]
    overall: tuple[Row, ...]
    variants: tuple[str, ...]
    controls: tuple[str, ...]
    fidelity: Fidelity
    by: str

    @property
    def names(self) -> dict[str, str]:
        """What stands over the columns, by the name of the group, category or task."""
        return {row.name: row.alias for row in self.rows}

    @property
    def text(self) -> str | None:
        """The text on which the fidelity was measured; of several the first."""
        return next((task for _, task in self.fidelity), None)


def summarise(
    rows: Sequence[Row], variants: Sequence[str], controls: Sequence[str], fidelity: Fidelity, by: str | None = None
) -> Summary:
    """The table's content. Without `by`: the given categories, else lm_eval's groups, else the tasks if they are few.

    Raises `UserError` where there is nothing of what `by` asks for.
    """
    accuracies = main_metric(rows)
    overall = section_of(accuracies, "overall")
    found = {section: section_of(accuracies, section) for section in ("category", "task")}
    outer = {row.parent for row in section_of(rows, "group")}
    most = max((row.tasks for row in section_of(accuracies, "task") + overall), default=0)
    groups = [row for row in section_of(accuracies, "group") if row.name not in outer]
    # A group of everything says what the overall drop says.
    apart = [row for row in groups if row.tasks < most or len({of.name for of in groups}) > 1]
    found["group"], found["overall"] = (groups if by == "group" else apart), []
    if by is None:
        few = 0 < len({row.name for row in found["task"]}) <= MOST_TASKS
        by = next((of for of in ("category", "group") if found[of]), "task" if few else "overall")
    one_of(by, BY, "by")
    if by != "overall" and not found[by]:
        there = [section for section in ("group", "category", "task") if found[section]]
        other = f"--by {' or --by '.join([*there, 'overall'])} has something" if there or overall else ""
        why = {"category": "give --categories FILE", "group": "lm_eval scored no group of these tasks"}.get(by, "")
        raise UserError(f"There is nothing to show by {by}: {'; '.join(filter(None, [why, other]))}.")
    return Summary(tuple(found[by]), tuple(overall), tuple(variants), tuple(controls), fidelity, by)


def summary_table(summary: Summary, told: Told) -> Table:
    """Rows: the baseline's accuracy (percent), the drops (pp) of each variant, then those of the controls."""
    names, costs = summary.names, _costs(summary)
    shown = {(row.variant, row.name): row for row in (*summary.rows, *summary.overall)}
    keys = [*names, *(["overall"] if summary.overall else [])]
    first = {name: next(row for (_, of), row in shown.items() if of == name) for name in keys}
    untouched = (text_cell(BASELINE), *(baseline_cell(first[name]) for name in keys), *(Cell("") for _ in costs))
    body = [untouched] if keys else []
    for variant in (*summary.variants, *summary.controls):
        of = summary.fidelity.get((variant, summary.text or ""), {})
        measured = (_cost_cell(of.get(metric), digits) for _, metric, digits in costs)
        body.append((text_cell(variant), *(drop_cell(shown.get((variant, name)), told) for name in keys), *measured))
    columns = (Column("variant", "left"), *map(Column, (*names.values(), *(["overall"] if summary.overall else []))))
    columns += tuple(Column(heading) for heading, *_ in costs)
    starts = len(body) - len(summary.controls), len(body) - len(summary.controls) - len(summary.variants)
    blocks = sorted({at for at in starts if 0 < at < len(body)})
    caption = _caption(summary, [heading for heading, *_ in costs], told)
    return Table("summary", "What each variant loses", caption, columns, tuple(body), blocks=tuple(blocks))


def _costs(summary: Summary) -> list[tuple[str, str, int]]:
    """The columns of running text in which anything was measured."""
    on = [of for (_, task), of in summary.fidelity.items() if task == summary.text]
    return [cost for cost in COSTS if any((made := of.get(cost[1])) and made.value is not None for of in on)]


def _cost_cell(made: Measured | None, digits: int) -> Cell:
    if made is None or made.value is None:
        return Cell(NA)
    known = made.low is not None and made.high is not None
    bounds = f"[{significant(made.low, digits)}, {significant(made.high, digits)}]" if known else ""
    return number_cell(made.value, f"{significant(made.value, digits)}{made.mark}", bounds)


def _caption(summary: Summary, costs: Sequence[str], told: Told) -> str:
    shown = (*summary.rows, *summary.overall)
    parts = []
    if shown:
        parts.append(
            "First row: accuracy of the untouched model, in percent. Below: drop in percentage points, positive where "
            f"the variant is worse, with its {told.level:.0%} interval. * adjusted p < {1 - told.level:.2g}: "
            f"{told.family} {how_measured(shown, told)}{chance_mark(shown)}"
        )
    if costs:
        text = (summary.text or "").removeprefix(GROUP)
        units = [f"{heading}, in nats/token" if heading != "effective compute" else heading for heading in costs]
        parts.append(f"On {text}: {'; '.join(units)}.")
    if summary.controls:
        parts.append(f"Controls, with no dictionary's reconstruction: {', '.join(summary.controls)}.")
    return " ".join(parts)


def summary_frame(summary: Summary) -> pd.DataFrame:
    """The table's numbers, unrounded: for each column of drops also `low`, `high` and the adjusted `p` (pp)."""
    shown = {(row.variant, row.name): row for row in (*summary.rows, *summary.overall)}
    names: Mapping[str, str] = {**summary.names, **({"overall": "overall"} if summary.overall else {})}
    first = {name: next(row for (_, of), row in shown.items() if of == name) for name in names}
    untouched = {alias: 100 * first[name].baseline for name, alias in names.items()}
    records: list[dict[str, object]] = [{"variant": BASELINE, **untouched}]
    for variant in (*summary.variants, *summary.controls):
        record: dict[str, object] = {"variant": variant}
        for name, alias in names.items():
            row = shown.get((variant, name))
            parts = (row.drop, row.low, row.high, row.p_adjusted) if row else (None,) * 4
            record |= dict(zip((alias, f"{alias} low", f"{alias} high", f"{alias} p"), parts, strict=True))
        for heading, metric, _ in _costs(summary):
            made = summary.fidelity.get((variant, summary.text or ""), {}).get(metric)
            record[heading] = made.value if made else None
        records.append(record)
    columns = list(dict.fromkeys(key for record in reversed(records) for key in record))
    return pd.DataFrame(records, columns=columns)
