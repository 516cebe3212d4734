"""The rows of a comparison as tables: overall, by category, and every task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    Column,
    Table,
    alternatives,
    distinct,
    fixed,
    listing,
    number_cell,
    percent,
    probability,
    significant,
    span,
    text_cell,
)

DAGGER, TIMES = "\N{DAGGER}", "\N{MULTIPLICATION SIGN}"
# More rows than these make a figure that no page holds.
MOST_ROWS = 36
# A table with more rows may need to span pages.
LONG = 24
# A page of a paper holds so many columns of drops with their intervals.
COLUMNS_A_TABLE = 4


@dataclass(frozen=True)
class Row:
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
    low: float
    high: float
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
    chance: float | None
    above_chance_lost: float | None
    above_chance_low: float | None
    above_chance_high: float | None
    margin_change: float | None
    kl: float | None


@dataclass(frozen=True)
class Shown:
    """The rows that stand for the categories, one for each (variant, name), and `what` they are."""

    rows: tuple[Row, ...]
    what: str
    left_out: int = 0


@dataclass(frozen=True)
class Told:
    """What every caption states besides: the level of the intervals, and over which tests p was adjusted."""

    level: float
    family: str


def rows_of(drops: pd.DataFrame) -> list[Row]:
    defined: Any = drops.astype(object).where(drops.notna(), None)
    names = [field.name for field in fields(Row)]
    return [Row(**record) for record in defined[names].to_dict("records")]


def section_of(rows: Iterable[Row], section: str) -> list[Row]:
    return [row for row in rows if row.section == section]


def main_metric(rows: Iterable[Row]) -> list[Row]:
    """Of each (variant, section, name) only the first accuracy."""
    first: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if row.kind == "accuracy":
            first.setdefault((row.variant, row.section, row.name), row)
    return list(first.values())


def categories(rows: Sequence[Row]) -> Shown:
    """The given categories; without any, the tasks if a figure holds them, or else lm_eval's groups of them.

    Of groups within groups these are the inner ones, and a task of no group stands beside them. Where there are no
    groups, the tasks whose drop is largest in any variant. Parents go by their aliases.
    """
    aliases = {row.name: row.alias for row in rows}
    outer = {row.parent for row in section_of(rows, "group")}
    accuracies = [replace(row, parent=aliases.get(row.parent or "", row.parent)) for row in main_metric(rows)]
    of = {section: section_of(accuracies, section) for section in ("category", "group", "task")}
    if of["category"]:
        return Shown(tuple(of["category"]), "category")
    largest: dict[str, float] = {}
    for row in of["task"]:
        largest[row.name] = max(row.drop, largest.get(row.name, row.drop))
    if of["group"] and len(largest) > MOST_ROWS:
        inner = [row for row in of["group"] if row.name not in outer]
        return Shown((*inner, *(row for row in of["task"] if not row.parent)), "group")
    kept = sorted(largest, key=lambda name: -largest[name])[:MOST_ROWS]
    return Shown(tuple(row for row in of["task"] if row.name in kept), "task", len(largest) - len(kept))


def variants_of(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.variant for row in rows))


def in_order(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Names by parent, the parent that loses most on average first, and within it the name that does."""
    drops: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        drops.setdefault(row.parent or "", {}).setdefault(row.name, []).append(row.drop)
    mean = {parent: {name: fmean(of) for name, of in names.items()} for parent, names in drops.items()}
    parents = sorted(mean, key=lambda parent: -fmean(mean[parent].values()))
    return {parent: sorted(mean[parent], key=lambda name: -mean[parent][name]) for parent in parents}


def interval(row: Row) -> str:
    """With a dagger where something is to be known of it, and of perplexities as a ratio too."""
    show, mark = fixed if row.kind == "accuracy" else significant, DAGGER if row.caution else ""
    if row.low is None or row.high is None:
        return f"{NA}{mark}"
    ratio = f" ({TIMES}{significant(row.ratio_low)} to {TIMES}{significant(row.ratio_high)})" if row.ratio else ""
    return f"[{show(row.low)}, {show(row.high)}]{mark}{ratio}"


def star(row: Row, told: Told) -> str:
    return "*" if row.p_adjusted is not None and row.p_adjusted < 1 - told.level - 1e-12 else ""


def how_measured(rows: Sequence[Row], told: Told) -> str:
    """Metric, n, shots, interval and test, as every caption states them."""
    metrics = listing(dict.fromkeys(metric_name(row) for row in rows))
    return (
        f"n = {span(row.n for row in rows)} questions a row, {span(row.shots for row in rows)} shots, "
        f"metric {metrics}. "
        f"{told.level:.0%} interval: {alternatives(row.interval for row in rows)}. "
        f"Test: {alternatives(row.test for row in rows)}. {told.family}{_cautions(rows)}"
    )


def _cautions(rows: Sequence[Row]) -> str:
    found = distinct(row.caution for row in rows)
    return f" {DAGGER} {'; '.join(found)}." if found else ""


def overall_tables(rows: Sequence[Row], told: Told) -> list[Table]:
    """A row for each variant, over all its tasks; no table where nothing was right or wrong."""
    overall = section_of(rows, "overall")
    if not overall:
        return []
    headings = ("tasks", "n", "baseline", "spliced", "drop", f"{told.level:.0%} interval", "adjusted p")
    body = [
        (text_cell(row.variant), _count(row.tasks), _count(row.n), *_scores(row, told), _p(row.p_adjusted))
        for row in overall
    ]
    caption = (
        "Accuracy of the untouched model and of each variant over all tasks, every question counting alike, in "
        "percent; the drop in percentage points, positive where the variant is worse. "
        f"{how_measured(overall, told)}"
    )
    columns = (Column("variant", "left"), *map(Column, headings))
    return [Table("overall", "What each variant loses", caption, columns, tuple(body))]


def category_tables(shown: Shown, told: Told) -> list[Table]:
    """A row for each category, a column for each variant; many variants are spread over several tables."""
    variants = variants_of(shown.rows)
    parts = -(-len(variants) // COLUMNS_A_TABLE)
    chunks = [list(chunk) for chunk in np.array_split(variants, parts)] if parts else []
    return [_category_table(shown, chunk, told, index, parts) for index, chunk in enumerate(chunks, start=1)]


def _category_table(shown: Shown, variants: Sequence[str], told: Told, part: int, parts: int) -> Table:
    row_of = {(row.variant, row.name): row for row in shown.rows}
    by_name = {row.name: row for row in shown.rows}
    body, grouped = [], in_order(shown.rows)
    for parent, names in grouped.items():
        for name in names:
            first = by_name[name]
            head = [text_cell(parent)] if len(grouped) > 1 else []
            head += [text_cell(first.alias), number_cell(first.baseline, percent(first.baseline))]
            body.append((*head, *(_drop_cell(row_of.get((variant, name)), told) for variant in variants)))
    columns = [Column("group", "left")] if len(grouped) > 1 else []
    columns += [Column(shown.what, "left"), Column("baseline"), *map(Column, variants)]
    some = f" The {MOST_ROWS} with the largest drop; {shown.left_out} more are in the table of every task."
    caption = (
        f"In percentage points, with its {told.level:.0%} interval; positive is worse. Baseline: accuracy of the "
        f"untouched model in percent. * adjusted p < {1 - told.level:.2g}. {how_measured(shown.rows, told)}"
        f"{some if shown.left_out else ''}"
    )
    title = f"Drop by {shown.what}" + (f" ({part} of {parts})" if parts > 1 else "")
    extent = "short" if len(body) <= LONG else "long"
    return Table(f"categories-{part}", title, caption, tuple(columns), tuple(body), extent)


def _drop_cell(row: Row | None, told: Told) -> Cell:
    """The drop, its interval, and a star where the test rejects."""
    return Cell(NA) if row is None else number_cell(row.drop, f"{fixed(row.drop)} {interval(row)}{star(row, told)}")


# What not every comparison has: heading, what it is, and its cell.
OPTIONAL: tuple[tuple[str, str, Callable[[Row], Cell]], ...] = (
    (
        "margin",
        "mean change of the margin of the right answer, in nats",
        lambda row: number_cell(row.margin_change, fixed(row.margin_change, 2)),
    ),
    ("KL", "mean KL at the answers, in nats", lambda row: number_cell(row.kl, significant(row.kl))),
    (
        "above chance lost",
        "share of the baseline's accuracy above chance that is lost, in percent, with Fieller's interval",
        lambda row: number_cell(row.above_chance_lost, _share(row)),
    ),
)


def _share(row: Row) -> str:
    if row.above_chance_low is None or row.above_chance_high is None:
        return percent(row.above_chance_lost)
    bounds = f"[{percent(row.above_chance_low)}, {percent(row.above_chance_high)}]"
    return f"{percent(row.above_chance_lost)} {bounds}"


def detail_tables(rows: Sequence[Row], told: Told) -> list[Table]:
    """Every task of every variant, a table for each variant."""
    tasks = section_of(rows, "task")
    return [
        _detail_table(index, variant, [row for row in tasks if row.variant == variant], told)
        for index, variant in enumerate(variants_of(tasks), start=1)
    ]


def _detail_table(index: int, variant: str, rows: Sequence[Row], told: Told) -> Table:
    metrics = len({metric_name(row) for row in rows}) > 1
    extra = [of for of in OPTIONAL if any(of[2](row).value is not None for row in rows)]
    body = [
        (
            text_cell(row.alias),
            *([text_cell(metric_name(row))] if metrics else []),
            *(_count(row.n), _count(row.shots), *_scores(row, told), _count(row.lost), _count(row.gained)),
            *(_p(row.p), _p(row.p_adjusted)),
            *(make(row) for *_, make in extra),
        )
        for row in rows
    ]
    headings = ("n", "shots", "baseline", "spliced", "drop", f"{told.level:.0%} interval", "lost", "gained")
    columns = [Column("task", "left"), *([Column("metric", "left")] if metrics else [])]
    columns += map(Column, (*headings, "p", "adjusted p", *(heading for heading, *_ in extra)))
    caption = (
        "Accuracies in percent, drops in percentage points; lost and gained: answers that went from right to wrong and "
        "from wrong to right; perplexities by their logarithm, as the rise in nats and as a ratio; other metrics in "
        "their own units, positive where the variant is worse"
        f"{''.join(f'; {heading}: {meaning}' for heading, meaning, _ in extra)}. {how_measured(rows, told)}"
    )
    return Table(f"tasks-{index}", f"Every task: {variant}", caption, tuple(columns), tuple(body), "long")


def metric_name(row: Row) -> str:
    return row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"


def _count(value: int | None) -> Cell:
    return number_cell(value, NA if value is None else f"{value:,}")


def _p(value: float | None) -> Cell:
    return number_cell(value, probability(value))


def _scores(row: Row, told: Told) -> tuple[Cell, ...]:
    show, show_drop = (percent, fixed) if row.kind == "accuracy" else (significant, significant)
    times = f" ({TIMES}{significant(row.ratio)})" if row.ratio else ""
    return (
        number_cell(row.baseline, show(row.baseline)),
        number_cell(row.score, show(row.score)),
        number_cell(row.drop, f"{show_drop(row.drop)}{times}{star(row, told)}"),
        number_cell(row.low, interval(row)),
    )
