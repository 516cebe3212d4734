"""The table of the variants against each other."""

from __future__ import annotations

import pandas as pd

from sae_lm_eval.comparison.multiplicity import has_star
from sae_lm_eval.report.drop_tables import Significance, bounds_of, count_cell, p_cell
from sae_lm_eval.report.formatting import (
    Cell,
    ReportTable,
    TableColumn,
    alternatives,
    fixed_decimals,
    is_number,
    number_cell,
    text_cell,
)


def between_tables(between: pd.DataFrame, significance: Significance) -> list[ReportTable]:
    """How much more one variant loses than another; no table where there are not two to compare."""
    if between.empty:
        return []
    body = []
    for record in between.to_dict("records"):
        mark = "*" if has_star(record["p_adjusted"], significance.level) else ""
        difference = number_cell(record["difference"], f"{fixed_decimals(record['difference'])}{mark}")
        low, high = (bound if is_number(bound) else None for bound in (record["low"], record["high"]))
        body.append(
            (
                *(text_cell(record["variant"]), text_cell(record["other"]), count_cell(record["n"]), difference),
                *(Cell(bounds_of(low, high), low), p_cell(record["p_adjusted"])),
            )
        )
    caption = (
        "How much more the first variant loses than the second over all tasks, question by question, in percentage "
        f"points; {significance.level:.0%} interval: {alternatives(between['interval'])}; p: "
        f"{alternatives(between['test'])}, Holm's adjustment over {len(between)} pair{'s' * (len(between) > 1)}."
    )
    columns = (
        *(TableColumn("variant", "left"), TableColumn("beside", "left")),
        *map(TableColumn, ("n", "difference", f"{significance.level:.0%} interval", "p")),
    )
    return [ReportTable("between", "Variants against each other", caption, columns, tuple(body))]
