"""The rows of a comparison as tables: overall, by category, and every task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.comparison.multiplicity import has_star
from sae_lm_eval.comparison.pairs import NONE_RIGHT, NOT_ABOVE
from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    ReportTable,
    TableColumn,
    alternatives,
    distinct_texts,
    fixed_decimals,
    listing,
    number_cell,
    percent,
    probability,
    questions_a_row,
    significant,
    text_cell,
)

AT_CHANCE = "\N{DOUBLE DAGGER}"
SETS_ALIKE = "the sets of documents do not differ in what they lost"
BEYOND_BASELINE = "more than the baseline has to lose"
DAGGER, TIMES = "\N{DAGGER}", "\N{MULTIPLICATION SIGN}"
# More rows than these make a figure that no page holds.
MOST_ROWS = 36
# A table with more rows may need to span pages.
LONG = 24
# A page of a paper holds so many columns of drops with their intervals.
COLUMNS_A_TABLE = 6


@dataclass(frozen=True)
class DropRow:
    """A row of `Comparison.drops`; None where a number is undefined."""

    variant: str
    section: str
    parent: str | None
    name: str
    alias: str
    metric: str
    filter: str
    primary: bool
    kind: str
    tasks: int
    n: int
    shots: int | None
    baseline: float
    score: float
    drop: float
    low: float | None
    high: float | None
    tasks_low: float | None
    tasks_high: float | None
    unit: str
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    interval: str
    caution: str | None
    p: float | None
    p_adjusted: float | None
    test: str
    lost: int | None
    gained: int | None
    detectable: float | None
    chance: float | None
    above_chance_lost: float | None
    above_chance_low: float | None
    above_chance_high: float | None
    above_chance_reason: str | None
    margin_change: float | None
    kl: float | None

    @property
    def at_chance(self) -> bool:
        """Whether the baseline is not clearly above chance, or answers nothing right: there is nothing to lose."""
        return self.above_chance_reason in (NOT_ABOVE, NONE_RIGHT)

    @property
    def undetectable_reason(self) -> str | None:
        """Why `detectable` is undefined: over sets of documents it comes from the interval, which they may not have."""
        if self.detectable is not None:
            return None
        return SETS_ALIKE if self.low is None else BEYOND_BASELINE


@dataclass(frozen=True)
class CategoryRows:
    """The rows that stand for the categories, one for each (variant, name), and `what` they are."""

    rows: tuple[DropRow, ...]
    what: str
    left_out: int = 0


@dataclass(frozen=True)
class Significance:
    """What every caption states besides: the level of the intervals, and over which tests p was adjusted."""

    level: float
    family: str


def drop_rows(drops: pd.DataFrame) -> list[DropRow]:
    defined: Any = drops.astype(object).where(drops.notna(), None)
    names = [field.name for field in fields(DropRow)]
    return [DropRow(**record) for record in defined[names].to_dict("records")]


def section_of(rows: Iterable[DropRow], section: str) -> list[DropRow]:
    return [row for row in rows if row.section == section]


def main_metric(rows: Iterable[DropRow]) -> list[DropRow]:
    """Of each (variant, section, name) only the first accuracy."""
    first: dict[tuple[str, str, str], DropRow] = {}
    for row in rows:
        if row.kind == "accuracy":
            first.setdefault((row.variant, row.section, row.name), row)
    return list(first.values())


def without_controls(rows: Sequence[DropRow], controls: Collection[str]) -> list[DropRow]:
    """The rows of reconstructions; all where there are none."""
    return [row for row in rows if row.variant not in controls] or list(rows)


def category_rows(rows: Sequence[DropRow], controls: Collection[str] = ()) -> CategoryRows:
    """The given categories; without any, the tasks if a figure holds them, or else lm_eval's groups of them.

    Of groups within groups these are the inner ones, and a task of no group stands beside them. Where there are no
    groups, the tasks whose drop is largest in any reconstruction. Parents go by their aliases.
    """
    aliases = {row.name: row.alias for row in rows}
    outer = {row.parent for row in section_of(rows, "group")}
    accuracies = [replace(row, parent=aliases.get(row.parent or "", row.parent)) for row in main_metric(rows)]
    by_section = {section: section_of(accuracies, section) for section in ("category", "group", "task")}
    if by_section["category"]:
        return CategoryRows(tuple(by_section["category"]), "category")
    largest: dict[str, float] = {}
    for row in without_controls(by_section["task"], controls):
        largest[row.name] = max(row.drop, largest.get(row.name, row.drop))
    inner = [row for row in by_section["group"] if row.name not in outer]
    if len({row.name for row in inner}) > 1 and len(largest) > MOST_ROWS:
        return CategoryRows((*inner, *(row for row in by_section["task"] if not row.parent)), "group")
    names = sorted(largest, key=lambda name: -largest[name])[:MOST_ROWS]
    return CategoryRows(
        tuple(row for row in by_section["task"] if row.name in names), "task", len(largest) - len(names)
    )


def drop_variants(rows: Iterable[DropRow]) -> list[str]:
    return list(dict.fromkeys(row.variant for row in rows))


def in_order(rows: Iterable[DropRow]) -> dict[str, list[str]]:
    """Names by parent, both as they come: in lm_eval's order, or as `by_drop` has sorted them."""
    names: dict[str, dict[str, None]] = {}
    for row in rows:
        names.setdefault(row.parent or "", {})[row.name] = None
    return {parent: list(children) for parent, children in names.items()}


def by_drop(rows: Sequence[DropRow], controls: Collection[str] = ()) -> list[DropRow]:
    """The rows of each section and variant, those first that lose most on average over the reconstructions.

    Rows that no reconstruction has, such as a control's own lengths of prompts, go by their own drops.
    """
    by_name: dict[tuple[str, str], list[DropRow]] = {}
    for row in rows:
        by_name.setdefault((row.section, row.name), []).append(row)
    means = {key: fmean(row.drop for row in without_controls(own, controls)) for key, own in by_name.items()}
    sections = list(dict.fromkeys(row.section for row in rows))
    variants = drop_variants(rows)
    return sorted(
        rows,
        key=lambda row: (sections.index(row.section), -means[row.section, row.name], variants.index(row.variant)),
    )


def drop_interval(row: DropRow) -> str:
    """With a dagger where something is to be known of it, and of perplexities as a ratio too."""
    show, mark = fixed_decimals if row.kind == "accuracy" else significant, DAGGER if row.caution else ""
    if row.low is None or row.high is None:
        return f"{NA}{mark}"
    ratio = f" ({TIMES}{significant(row.ratio_low)} to {TIMES}{significant(row.ratio_high)})" if row.ratio else ""
    return f"[{show(row.low)}, {show(row.high)}]{mark}{ratio}"


def star(row: DropRow, significance: Significance) -> str:
    return "*" if row.p_adjusted is not None and has_star(row.p_adjusted, significance.level) else ""


def how_measured(rows: Sequence[DropRow], significance: Significance) -> str:
    """Metric, n, shots and interval; the test is told of once, in the methods."""
    metrics = listing(dict.fromkeys(metric_name(row) for row in rows))
    return (
        f"{questions_a_row(rows)}, metric {metrics}. {significance.level:.0%} interval: "
        f"{alternatives(row.interval for row in rows)}, for other questions like these, not adjusted for the number "
        f"of intervals.{caution_mark(rows)}"
    )


def caution_mark(rows: Sequence[DropRow]) -> str:
    cautions = distinct_texts(row.caution for row in rows)
    return f" {DAGGER} {'; '.join(cautions)}." if cautions else ""


def overall_tables(rows: Sequence[DropRow], significance: Significance) -> list[ReportTable]:
    """A row for each variant, over all its tasks; no table where nothing was right or wrong."""
    overall = section_of(rows, "overall")
    if not overall:
        return []
    several = any(row.tasks_low is not None for row in overall)
    headings = ["tasks", "n", *score_headings(significance), *[OVER_TASKS] * several, "p", "detectable"]
    body = [
        (
            *(text_cell(row.variant), count_cell(row.tasks), count_cell(row.n), *score_cells(row, significance)),
            *([over_tasks_cell(row)] if several else []),
            *(p_cell(row.p_adjusted), number_cell(row.detectable, fixed_decimals(row.detectable))),
        )
        for row in overall
    ]
    reasons = distinct_texts(row.undetectable_reason for row in overall)
    beyond = f"; n/a: {' or '.join(reasons)}" if reasons else ""
    caption = (
        "Accuracy of the untouched model and of each variant over all tasks, every question counting alike, in "
        "percent; the drop in percentage points, positive where the variant is worse. "
        f"{how_measured(overall, significance)}{OF_OVER_TASKS * several} p: {ADJUSTED}. "
        "Detectable: the drop that this many questions show with "
        f"a power of 80% (two-sided test at 5%){beyond}.{chance_mark(overall)}"
    )
    columns = (
        TableColumn("variant", "left"),
        *(TableColumn(heading, spare=int(heading in ("tasks", "spliced", OVER_TASKS))) for heading in headings),
    )
    return [ReportTable("overall", "Over all tasks", caption, columns, tuple(body))]


ADJUSTED = "adjusted as the stars of the first table"
OVER_TASKS = "interval over tasks"
OF_OVER_TASKS = (
    " Interval over tasks, of the same level: if these tasks were drawn from many like them (cluster-robust, with the "
    "tasks' own weights); n/a for fewer than ten tasks, or where all lose alike."
)


def chance_mark(rows: Iterable[DropRow]) -> str:
    """What the mark behind a baseline's accuracy means, where one is shown."""
    reasons = distinct_texts(row.above_chance_reason for row in rows if row.at_chance)
    return f" {AT_CHANCE} {' or '.join(reasons)}: it has nothing to lose there." if reasons else ""


def category_tables(shown: CategoryRows, significance: Significance) -> list[ReportTable]:
    """A row for each category, a column for each variant; many variants are spread over several tables."""
    variants = drop_variants(shown.rows)
    parts = -(-len(variants) // COLUMNS_A_TABLE)
    chunks = [list(chunk) for chunk in np.array_split(variants, parts)] if parts else []
    return [_category_table(shown, chunk, significance, index, parts) for index, chunk in enumerate(chunks, start=1)]


def _category_table(
    shown: CategoryRows, variants: Sequence[str], significance: Significance, part: int, parts: int
) -> ReportTable:
    row_of = {(row.variant, row.name): row for row in shown.rows}
    by_name = {row.name: row for row in shown.rows}
    body, grouped = [], in_order(shown.rows)
    for parent, names in grouped.items():
        for name in names:
            first = by_name[name]
            head = [text_cell(parent)] if len(grouped) > 1 else []
            head += [text_cell(first.alias), baseline_cell(first)]
            body.append((*head, *(drop_cell(row_of.get((variant, name)), significance) for variant in variants)))
    columns = [TableColumn("group", "left")] if len(grouped) > 1 else []
    columns += [TableColumn(shown.what, "left"), TableColumn("baseline"), *map(TableColumn, variants)]
    some = f" The {MOST_ROWS} with the largest drop; {shown.left_out} more are in the table of every task."
    caption = (
        f"In percentage points, with its {significance.level:.0%} interval; positive is worse. Baseline: accuracy of "
        f"the untouched model in percent. * adjusted p < {1 - significance.level:.2g}. "
        f"{how_measured(shown.rows, significance)}{chance_mark(shown.rows)}{some if shown.left_out else ''}"
    )
    title = f"Drop by {shown.what}" + (f" ({part} of {parts})" if parts > 1 else "")
    extent = "short" if len(body) <= LONG else "long"
    return ReportTable(f"categories-{part}", title, caption, tuple(columns), tuple(body), extent)


def drop_cell(row: DropRow | None, significance: Significance) -> Cell:
    """The drop with a star where the test rejects, and its interval."""
    return (
        Cell(NA)
        if row is None
        else number_cell(row.drop, f"{fixed_decimals(row.drop)}{star(row, significance)}", drop_interval(row))
    )


def baseline_cell(row: DropRow) -> Cell:
    """Accuracy of the untouched model, in percent, with a mark where it is not clearly above chance."""
    return number_cell(row.baseline, f"{percent(row.baseline)}{AT_CHANCE * row.at_chance}")


def bounds_of(low: float | None, high: float | None) -> str:
    return NA if low is None or high is None else f"[{fixed_decimals(low)}, {fixed_decimals(high)}]"


def over_tasks_cell(row: DropRow) -> Cell:
    return Cell(bounds_of(row.tasks_low, row.tasks_high), row.tasks_low)


def metric_name(row: DropRow) -> str:
    return row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"


def count_cell(value: int | None) -> Cell:
    return number_cell(value, NA if value is None else f"{value:,}")


def p_cell(value: float | None) -> Cell:
    return number_cell(value, probability(value))


def score_headings(significance: Significance) -> tuple[str, ...]:
    """Those of `score_cells`."""
    return "baseline", "spliced", "drop", f"{significance.level:.0%} interval"


def score_cells(row: DropRow, significance: Significance) -> tuple[Cell, ...]:
    show, show_drop = (percent, fixed_decimals) if row.kind == "accuracy" else (significant, significant)
    times = f" ({TIMES}{significant(row.ratio)})" if row.ratio else ""
    return (
        number_cell(row.baseline, f"{show(row.baseline)}{AT_CHANCE * row.at_chance}"),
        number_cell(row.score, show(row.score)),
        number_cell(row.drop, f"{show_drop(row.drop)}{times}{star(row, significance)}"),
        number_cell(row.low, drop_interval(row)),
    )
