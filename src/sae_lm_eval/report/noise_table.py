"""What the untouched model's numbers move by between two runs of the same prompts."""

from __future__ import annotations

from collections.abc import Sequence

from sae_lm_eval.report.fidelity_tables import NOISE, recorded_noise_floor
from sae_lm_eval.report.formatting import ReportTable, TableColumn, number_cell, significant
from sae_lm_eval.results.results import Results


def noise_table(variants: Sequence[Results]) -> list[ReportTable]:
    """The noise floor, where the row baseline_again was run."""
    floor = recorded_noise_floor(variants)
    if not floor:
        return []
    caption = (
        f"The untouched model on {floor['sequences']:,} prompts and documents of the run, once each by itself and "
        f"once in batches of {floor['rows'][1]} in the opposite order: mean KL and absolute rise of the CE in "
        f"nats/token, and the share of positions with another likeliest token. {NOISE} marks values that are no "
        "greater. How many answers change with the batch size is in the rows of baseline_again."
    )
    cells = [number_cell(floor[name], significant(floor[name])) for name in ("kl", "ce_delta", "flips")]
    columns = tuple(map(TableColumn, ("KL", "delta CE", "top-1 flips", "tokens")))
    count = number_cell(floor["tokens"], f"{floor['tokens']:,}")
    return [ReportTable("noise-floor", "Noise floor", caption, columns, ((*cells, count),))]
