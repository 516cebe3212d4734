"""Drops within and beyond the context that a dictionary was trained on, and of prompts that were cut."""

from __future__ import annotations

from collections.abc import Sequence

from sae_lm_eval.comparison.prompt_lengths import SECTION
from sae_lm_eval.report.drop_tables import (
    ADJUSTED,
    DropRow,
    Significance,
    chance_mark,
    count_cell,
    drop_variants,
    how_measured,
    p_cell,
    score_cells,
    score_headings,
    section_of,
)
from sae_lm_eval.report.formatting import ReportTable, TableColumn, text_cell


def length_tables(rows: Sequence[DropRow], significance: Significance) -> list[ReportTable]:
    """A row for each variant and length; no table where no prompt is longer than a context."""
    of_length = section_of(rows, SECTION)
    chosen = [row for variant in drop_variants(of_length) for row in of_length if row.variant == variant]
    if not chosen:
        return []
    body = [
        (
            *(text_cell(row.variant), text_cell(row.alias), count_cell(row.n)),
            *(*score_cells(row, significance), p_cell(row.p_adjusted)),
        )
        for row in chosen
    ]
    caption = (
        "Drop of the documents whose prompts, with the answer, are within and beyond the context that the variant's "
        "dictionaries were trained on, and of those whose beginnings the model's context cuts off; accuracies in "
        "percent, drops in percentage points. Longer documents are other documents: they may be harder as well. "
        f"{how_measured(chosen, significance)} p: {ADJUSTED}.{chance_mark(chosen)}"
    )
    columns = [TableColumn("variant", "left"), TableColumn("documents", "left"), TableColumn("n")]
    columns += [TableColumn(heading, spare=int(heading == "spliced")) for heading in score_headings(significance)]
    return [ReportTable("lengths", "By length of the prompt", caption, (*columns, TableColumn("p")), tuple(body))]
