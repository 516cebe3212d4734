"""Equivalent compute by task, group and category, where the family of `curve --tasks` lies beside the run."""

from __future__ import annotations

from sae_lm_eval.capability.family import beside, equivalents, read_task_family, told
from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.errors import UserError
from sae_lm_eval.report.formatting import Column, Table, number_cell, text_cell


def equivalent_tables(comparison: Comparison) -> tuple[list[Table], list[str]]:
    """The table, and in its place a note where the family is none of this run; neither without a family."""
    path = beside(comparison.baseline)
    if path is None or not comparison.cuts:
        return [], []
    try:
        found = equivalents(comparison, read_task_family(path))
    except UserError as error:
        return [], [f"No equivalent compute is shown: {error}"]
    rows = tuple(
        (
            *(text_cell(str(row[name])) for name in ("variant", "section", "alias", "measure")),
            number_cell(row["fraction"], told(row)),
        )
        for row in found.to_dict("records")
    )
    caption = (
        f"The share of the original's training compute after which {path.stem}, a curve of {found['models'].iloc[0]} "
        "models on the same prompts, has the spliced model's score. Intervals resample documents, the same of every "
        "model; they do not cover what another training would have given."
    )
    heads = [Column(head, "left") for head in ("variant", "section", "name", "by")]
    return [
        Table("equivalent-compute", "Equivalent compute", caption, (*heads, Column("equivalent compute")), rows)
    ], []
