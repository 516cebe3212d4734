"""Whether the dictionaries had the numbers that their releases state: a table, and a note for each that had others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sae_lm_eval.report.formatting import Cell, ReportTable, TableColumn, number_cell, significant, text_cell
from sae_lm_eval.results.results import Results

LABELS = {"l0": "L0", "fvu": "FVU", "norm_in": "norm read", "norm_out": "norm written"}
HEADS = ("variant", "text", "site", "number", "released", "measured", "ratio", "verdict")
VALUES = ("stated", "measured", "ratio")
FACTOR = 2.0
CAPTION = (
    "What the releases state of their dictionaries, and what was measured on each text. As released is what lies "
    "within a factor of 2, since the text is another."
)


class Compared(NamedTuple):
    """A dictionary on a text, by a run's own record."""

    variant: str
    text: str
    record: dict[str, Any]


def released_table(variants: Sequence[Results]) -> ReportTable:
    """A row for each number that a release states and a run measured; none where there is no such number."""
    rows = [
        (*map(text_cell, (each.variant, each.text, each.record["site"])), *_cells(number))
        for each in _compared(variants)
        for number in each.record["numbers"]
    ]
    columns = tuple(
        TableColumn(head, "right" if head in ("released", "measured", "ratio") else "left") for head in HEADS
    )
    return ReportTable("as-released", "The dictionaries against their releases", CAPTION, columns, tuple(rows))


def released_notes(variants: Sequence[Results]) -> list[str]:
    """A sentence for each dictionary that was not as released."""
    return [
        f"{each.variant} on {each.text}: {each.record['verdict']}."
        for each in _compared(variants)
        if each.record["agrees"] is False
    ]


def _compared(variants: Sequence[Results]) -> Iterator[Compared]:
    for results in variants:
        for task, measured in (results.provenance.get("fidelity") or {}).items():
            for record in measured.get("as_released") or ():
                yield Compared(results.name, task.removeprefix("sae_fidelity_"), record)


def _cells(number: dict[str, Any]) -> tuple[Cell, ...]:
    values = [number_cell(value, significant(value)) for value in (number[name] for name in VALUES)]
    near = 1 / FACTOR <= number["ratio"] <= FACTOR
    return (text_cell(LABELS[number["name"]]), *values, text_cell("as released" if near else "not as released"))
