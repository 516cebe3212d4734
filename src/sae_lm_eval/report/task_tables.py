"""Every task and every group of each variant, a table for each variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sae_lm_eval.report.drop_tables import (
    DropRow,
    Told,
    chance_mark,
    count_cell,
    drop_variants,
    how_measured,
    metric_name,
    p_cell,
    score_cells,
    score_headings,
    section_of,
)
from sae_lm_eval.report.formatting import (
    Cell,
    ReportTable,
    TableColumn,
    fixed_decimals,
    number_cell,
    percent,
    significant,
    text_cell,
)

# By section: the beginnings of a table's name and of its title.
NAMES = {
    "overall": ("all", "Over all tasks"),
    "group": ("groups", "Every group"),
    "category": ("all-categories", "Every category"),
    "task": ("tasks", "Every task"),
}
SPARE = {"above chance lost": 3, "KL": 3, "raw p": 3, "spliced": 2, "shots": 2, "margin": 1, "lost": 1, "gained": 1}
# What not every comparison has: heading, what it is, and its cell.
OPTIONAL: tuple[tuple[str, str, Callable[[DropRow], Cell]], ...] = (
    (
        "margin",
        "mean change of the margin of the right answer, in nats",
        lambda row: number_cell(row.margin_change, fixed_decimals(row.margin_change, 2)),
    ),
    ("KL", "mean KL at the answers, in nats", lambda row: number_cell(row.kl, significant(row.kl))),
    (
        "above chance lost",
        "share of the baseline's accuracy above chance that is lost, in percent, with Fieller's interval",
        lambda row: number_cell(row.above_chance_lost, _share(row)),
    ),
)


def _share(row: DropRow) -> str:
    if row.above_chance_low is None or row.above_chance_high is None:
        return percent(row.above_chance_lost)
    bounds = f"[{percent(row.above_chance_low)}, {percent(row.above_chance_high)}]"
    return f"{percent(row.above_chance_lost)} {bounds}"


def detail_tables(rows: Sequence[DropRow], told: Told, section: str = "task") -> list[ReportTable]:
    """Every row of a section (overall, group, category or task), a table for each variant."""
    chosen = section_of(rows, section)
    return [
        _detail_table(index, variant, [row for row in chosen if row.variant == variant], told)
        for index, variant in enumerate(drop_variants(chosen), start=1)
    ]


def _detail_table(index: int, variant: str, rows: Sequence[DropRow], told: Told) -> ReportTable:
    section = rows[0].section
    metrics = len({metric_name(row) for row in rows}) > 1
    extra = [of for of in OPTIONAL if any(of[2](row).value is not None for row in rows)]
    body = [
        (
            text_cell(row.alias),
            *([text_cell(metric_name(row))] if metrics else []),
            *(
                count_cell(row.n),
                count_cell(row.shots),
                *score_cells(row, told),
                count_cell(row.lost),
                count_cell(row.gained),
            ),
            *(p_cell(row.p), p_cell(row.p_adjusted)),
            *(make(row) for *_, make in extra),
        )
        for row in rows
    ]
    headings = ("n", "shots", *score_headings(told), "lost", "gained")
    columns = [TableColumn(section, "left"), *([TableColumn("metric", "left")] if metrics else [])]
    for heading in (*headings, "raw p", "p", *(heading for heading, *_ in extra)):
        columns.append(TableColumn(heading, spare=SPARE.get(heading, 0)))
    caption = (
        "Accuracies in percent, drops in percentage points; lost and gained: answers that went from right to wrong and "
        "from wrong to right; perplexities by their logarithm, as the rise in nats and as a ratio; other metrics in "
        "their own units, positive where the variant is worse"
        f"{''.join(f'; {heading}: {meaning}' for heading, meaning, _ in extra)}. {how_measured(rows, told)}"
        f"{chance_mark(rows)}"
    )
    name, title = NAMES[section]
    return ReportTable(f"{name}-{index}", f"{title}: {variant}", caption, tuple(columns), tuple(body), "long")
