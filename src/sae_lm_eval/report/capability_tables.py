"""Equivalent compute by task, group and category, where the family of `curve --tasks` lies beside the run."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from sae_lm_eval.capability.family import beside, equivalents, read_task_family, told
from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.errors import UserError
from sae_lm_eval.report.formatting import Column, Table, number_cell, text_cell


class Equivalents(NamedTuple):
    """What `capability.family.equivalents` found, None without a family or where it is none of this run; its table; and
    in place of that a note."""

    found: pd.DataFrame | None = None
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def equivalent_tables(comparison: Comparison) -> Equivalents:
    """By the family that lies beside the run."""
    path = beside(comparison.baseline)
    if path is None or not comparison.cuts:
        return Equivalents()
    try:
        found = equivalents(comparison, read_task_family(path))
    except UserError as error:
        return Equivalents(notes=(f"No equivalent compute is shown: {error}",))
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
    columns = (*heads, Column("equivalent compute"))
    return Equivalents(found, (Table("equivalent-compute", "Equivalent compute", caption, columns, rows),))
