"""Every task and every group of each variant, a table for each variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sae_lm_eval.report.drop_tables import (
    OF_OVER_TASKS,
    OVER_TASKS,
    DropRow,
    Significance,
    chance_mark,
    count_cell,
    drop_variants,
    how_measured,
    metric_name,
    over_tasks_cell,
    p_cell,
    score_cells,
    score_headings,
    section_of,
)
from sae_lm_eval.report.formatting import (
    SPARE_IN_PRINT,
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
SPARE = {
    "raw p": SPARE_IN_PRINT,
    **dict.fromkeys(("above chance lost", "KL"), 3),
    **dict.fromkeys(("spliced", "shots"), 2),
    **dict.fromkeys(("margin", "lost", "gained", OVER_TASKS), 1),
}
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


def detail_tables(rows: Sequence[DropRow], significance: Significance, section: str = "task") -> list[ReportTable]:
    """Every row of a section (overall, group, category or task): of tasks a table for each variant, else one."""
    chosen = section_of(rows, section)
    if not chosen:
        return []
    if section != "task":
        return [_detail_table(chosen, significance, several=True)]
    return [
        _detail_table([row for row in chosen if row.variant == variant], significance, f"-{index}")
        for index, variant in enumerate(drop_variants(chosen), start=1)
    ]


def _detail_table(
    rows: Sequence[DropRow], significance: Significance, number: str = "", *, several: bool = False
) -> ReportTable:
    """The rows of one variant, or of several with a column that names them.

    Shots that are the same in all rows are in the caption, and have no column.
    """
    section = rows[0].section
    metrics = len({metric_name(row) for row in rows}) > 1
    counts = ["n", *(["shots"] if len({row.shots for row in rows}) > 1 else [])]
    over_tasks = any(row.tasks_low is not None for row in rows)
    extra = [column for column in OPTIONAL if any(column[2](row).value is not None for row in rows)]
    body = [
        (
            *([text_cell(row.variant)] if several else []),
            text_cell(row.alias),
            *([text_cell(metric_name(row))] if metrics else []),
            *(count_cell(getattr(row, name)) for name in counts),
            *(*score_cells(row, significance), *([over_tasks_cell(row)] if over_tasks else [])),
            *(count_cell(row.lost), count_cell(row.gained)),
            *(p_cell(row.p), p_cell(row.p_adjusted)),
            *(make(row) for *_, make in extra),
        )
        for row in rows
    ]
    words = [*(["variant"] if several else []), section, *(["metric"] if metrics else [])]
    headings = (
        *counts,
        *score_headings(significance),
        *([OVER_TASKS] if over_tasks else []),
        "lost",
        "gained",
        "raw p",
        "p",
        *(heading for heading, *_ in extra),
    )
    # A line of print has no room for all of them: this one is the baseline less the drop.
    spare = SPARE | ({"spliced": SPARE_IN_PRINT} if over_tasks else {})
    columns = [
        *(TableColumn(word, "left") for word in words),
        *(TableColumn(heading, spare=spare.get(heading, 0)) for heading in headings),
    ]
    caption = (
        "Accuracies in percent, drops in percentage points; lost and gained: answers that went from right to wrong and "
        "from wrong to right; perplexities by their logarithm, as the rise in nats and as a ratio; other metrics in "
        "their own units, positive where the variant is worse"
        f"{''.join(f'; {heading}: {meaning}' for heading, meaning, _ in extra)}. {how_measured(rows, significance)}"
        f"{OF_OVER_TASKS * over_tasks}{chance_mark(rows)}"
    )
    name, title = NAMES[section]
    title = title if several else f"{title}: {rows[0].variant}"
    starts = [at for at in range(1, len(rows)) if rows[at].variant != rows[at - 1].variant]
    blocks = tuple(starts) if several else ()
    return ReportTable(f"{name}{number}", title, caption, tuple(columns), tuple(body), "long", blocks)
