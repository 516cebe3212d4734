"""The latents that a variant's lost margins depend on, as a table and sentences, from the record of `where`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_lm_eval.files.escaping import printable
from sae_lm_eval.report.formatting import (
    SPARE_IN_PRINT,
    Cell,
    ReportTable,
    TableColumn,
    fixed_decimals,
    interval_text,
    number_cell,
    significant,
    text_cell,
)
from sae_lm_eval.report.unusual_latents import latent_page

OVERALL = "overall"
EXAMPLES, BEFORE, AFTER = 2, 28, 14  # texts of a latent that are shown, and their letters around the token
SHORT = 12  # rows; a table of more is folded up


def tasks_together(record: Mapping[str, Any]) -> str:
    """What the tasks of a record are called together, which need not be all tasks of the run beside it."""
    tasks = record["tasks"]
    return str(tasks[0]) if len(tasks) == 1 else f"{len(tasks)} tasks together"


def latent_table(record: Mapping[str, Any], name: str) -> ReportTable | None:
    """A row for each latent of each part of the tasks; `name` is the table's. None where nothing is attributed."""
    latents = record.get("latents")
    if not latents or not latents["rows"]:
        return None
    several = len({row["hook"] for row in latents["rows"]}) > 1
    lines, blocks, before = [], [], None
    for row in latents["rows"]:
        if before not in (None, row["name"]):
            blocks.append(len(lines))
        part = tasks_together(record) if row["name"] == OVERALL else row["name"]
        lines.append(
            (
                text_cell(part),
                _latent(row, several),
                number_cell(row["attributed"], _nats(row["attributed"])),
                number_cell(
                    row["ablated"],
                    _nats(row["ablated"]),
                    interval_text(row["ablated_low"], row["ablated_high"], _nats),
                ),
                number_cell(row["active"], fixed_decimals(row["active"], 0)),
                text_cell("; ".join([*dict.fromkeys(map(_example, row["tokens"]))][:EXAMPLES])),
            )
        )
        before = row["name"]
    columns = (
        TableColumn("questions", "left"),
        TableColumn("latent", "left"),
        TableColumn("attributed"),
        TableColumn("ablated"),
        TableColumn("active in", spare=1),
        TableColumn("most active at", "left", spare=SPARE_IN_PRINT),
    )
    return ReportTable(
        name,
        f"{record['variant']}: latents that margins depend on",
        f"What each latent adds to the margin (nats), mean over {latents['documents']} questions weighted by what each "
        "lost of its margin; those that gained count with the opposite sign. Below 0, a latent pushes towards wrong "
        "answers where margin was lost. Attributed: activation times gradient, to first order. Ablated: what the "
        f"margin loses without the latent, exactly, with its {record['level']:.0%} interval (Student's). Active in: "
        "documents in whose prompt and right answer it is active. Most active at: the token in brackets, and the "
        "activation.",
        columns,
        tuple(lines),
        extent="short" if len(lines) <= SHORT else "long",
        blocks=tuple(blocks),
    )


def latent_sentences(record: Mapping[str, Any]) -> list[str]:
    """Why there are none, or what the error is worth to first order beside what was lost."""
    latents = record.get("latents")
    if not latents:
        return []
    if latents["reason"]:
        return [f"No latents: {latents['reason']}"]
    out = []
    for part in latents["parts"]:
        name = tasks_together(record) if part["name"] == OVERALL else part["name"]
        out.append(
            f"{name}: weighted by what each question lost, the margin gains {_nats(part['lost'])} nats without the "
            f"error; to first order {_nats(part['error'])}."
        )
    return out


def _latent(row: Mapping[str, Any], several: bool) -> Cell:
    text = f"{row['hook']}, {row['latent']}" if several else str(row["latent"])
    return Cell(text, text if several else float(row["latent"]), link=latent_page(row["neuronpedia"], row["latent"]))


def _example(token: Mapping[str, Any]) -> str:
    before, after = token["before"], token["after"]
    left = f"…{before[-BEFORE:]}" if len(before) > BEFORE else before
    right = f"{after[:AFTER]}…" if len(after) > AFTER else after
    text = " ".join(f"{left}[{token['token']}]{right}".split())
    return f"{printable(text)} ({significant(token['activation'])})"


def _nats(value: Any) -> str:
    return fixed_decimals(value, 3)
