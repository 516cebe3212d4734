"""Where the loss of a variant comes from: the record that `where` wrote, as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    Column,
    Table,
    fixed,
    interval,
    is_number,
    number_cell,
    share,
    significant,
    text_cell,
)

MEASURES = {"accuracy": "accuracy", "margin": "margin", "kl": "KL"}
KINDS = {"restored": "comes back", "alone": "alone", "random": "random"}
OVERALL = "overall"
SUM = "all classes together"
WIDTHS = {"pp": 1, "nats": 3, "nats/token": 3}


def class_table(record: Mapping[str, Any], division: str) -> Table | None:
    """The shares of the drop over all tasks by the classes of a division; None where it has none."""
    rows = [row for row in record["rows"] if row["division"] == division and row["name"] == OVERALL]
    if not rows:
        return None
    covered = {row["class"]: row for row in record["coverage"] if row["division"] == division}
    columns = [Column("class", "left"), Column("documents", spare=1), Column("positions", spare=1)]
    columns += [
        Column(f"{shown}: {name}", spare={"restored": 0, "alone": 2, "random": 3}[kind])
        for kind, shown in KINDS.items()
        for name in MEASURES.values()
    ]
    lines = []
    for name in dict.fromkeys(row["class"] for row in rows):
        own = {row["measure"]: row for row in rows if row["class"] == name}
        lines.append((text_cell(name), *_coverage(covered.get(name), record["documents"]), *_shares(own)))
    blocks = (len(lines) - 1,) if lines and lines[-1][0].text == SUM else ()
    return Table(
        f"where-{_slug(division)}",
        f"{record['variant']}: share of the drop by {division}",
        caption(record, division),
        tuple(columns),
        tuple(lines),
        blocks=blocks,
    )


def caption(record: Mapping[str, Any], division: str) -> str:
    """What the columns of a table of shares are."""
    level = f"{record['level']:.0%}"
    edges = record.get("norm_edges")
    by_norm = "" if division != "norm" or not edges else f" Edges of the norm: {_edges(edges)}."
    return (
        f"Share of the drop that comes back when the error of a class is put back, with its {level} interval "
        "(Fieller's); that a class makes with its error alone; and that a random error of the same norm makes there. "
        f"Documents that have the class, and its positions in one of them. {_half(record)}{by_norm}"
    )


def _half(record: Mapping[str, Any]) -> str:
    return "Every other document." if record["held_out"] else "All documents."


def _edges(edges: Mapping[str, Sequence[float]]) -> str:
    return "; ".join(f"{', '.join(significant(edge) for edge in of)} at {hook}" for hook, of in edges.items())


def _coverage(covered: Mapping[str, Any] | None, documents: int) -> tuple[Cell, Cell]:
    if covered is None:
        return text_cell(""), text_cell("")
    of = covered["documents"] / documents
    return number_cell(of, share(of)), number_cell(covered["positions"], fixed(covered["positions"]))


def _shares(own: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    cells = []
    for kind in KINDS:
        for measure in MEASURES:
            row = own.get(measure, {})
            value, low, high = (row.get(f"{kind}{end}") for end in ("", "_low", "_high"))
            cells.append(number_cell(value, share(value, 0), _bounds(low, high) if is_number(value) else ""))
    return cells


def _bounds(low: Any, high: Any) -> str:
    return interval(low, high, lambda value: share(value, 0))


def sentences(record: Mapping[str, Any]) -> list[str]:
    """The drops over all tasks, why a measure has no shares, and what could not be aligned."""
    out = []
    rows = {row["measure"]: row for row in record["rows"] if row["name"] == OVERALL}
    for measure, name in MEASURES.items():
        row = rows.get(measure)
        if row is None:
            continue
        shown = _number(row["unit"])
        bounds = f"{shown(row['drop'])} {row['unit']} ({interval(row['drop_low'], row['drop_high'], shown)})"
        why = "" if row["reason"] is None else f" No share is given: {row['reason']}."
        drop = bounds if is_number(row["drop"]) else NA
        what = name if measure == "kl" else f"drop in {name}"
        out.append(f"{record['variant']}: {what} {drop} on {row['n']:,} questions.{why}")
    if record["aligned"] < 1:
        out.append(
            f"The tokens of {share(1 - record['aligned'])} of the requests could not be found in their text: they are "
            "in the class that is not aligned."
        )
    return out


def _number(unit: str) -> Any:
    return lambda value: fixed(value, WIDTHS[unit])


def _slug(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
