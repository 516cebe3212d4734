"""What comes back with an adapter: its table, and a sentence of each dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sae_lm_eval.comparison.restored import ACCURACY
from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    ReportTable,
    TableColumn,
    distinct_texts,
    fixed_decimals,
    interval_text,
    is_number,
    number_cell,
    percent,
    share,
    significant,
    text_cell,
)

MOST_SENTENCES = 3
SHOWN = ("overall", "category", "group", "text")


def recovery_table(frame: pd.DataFrame, names: Mapping[str, str]) -> list[ReportTable]:
    """A row for each dictionary with an adapter, measure and part of the tasks; `names` lead to those shown."""
    rows = [row for row in frame.to_dict("records") if row["section"] in SHOWN]
    if not rows:
        return []
    body = [
        (
            *map(text_cell, (names[str(row["variant"])], row["adapter"], _where(row))),
            number_cell(row["n"], f"{row['n']:,}"),
            _amount(row, "drop", "low", "high"),
            _amount(row, "drop_adapted", "adapted_low", "adapted_high"),
            _share(row),
            _amount(row, "drop_alone", "alone_low", "alone_high"),
        )
        for row in rows
    ]
    heads = ("n", "drop", "with the adapter", "comes back", "adapter alone")
    columns = (
        *(TableColumn(head, "left") for head in ("variant", "adapter", "of")),
        *(TableColumn(head, spare=int(head == "n")) for head in heads),
    )
    reasons = "; ".join(distinct_texts(row["reason"] for row in rows))
    caption = (
        "What a dictionary costs without and with an adapter, on the same questions: drops against the untouched "
        "model, in percentage points of accuracy, each question counting alike, and delta CE and KL on text in "
        f"nats/token. Comes back: 1 \N{MINUS SIGN} drop with the adapter / drop. Below, {float(rows[0]['level']):.0%} "
        "intervals, over questions or documents, of the share Fieller's. Adapter alone: what it costs the model "
        f"without a dictionary; negative where it helps.{f' n/a: {reasons}.' if reasons else ''}"
    )
    return [ReportTable("recovery", "What comes back with an adapter", caption, columns, tuple(body))]


def recovery_sentences(frame: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """Of the first dictionaries: `With ./lora 43.1% (30.0% to 55.2%) of the drop of k4 comes back, and ...`."""
    sentences, rows = [], frame.to_dict("records")
    for adapted in list(dict.fromkeys(frame["adapted"]))[:MOST_SENTENCES]:
        own = [row for row in rows if row["adapted"] == adapted and is_number(row["share"])]
        drop = next((row for row in own if row["section"] == "overall"), None)
        loss = next((row for row in own if row["measure"] == "delta CE"), None)
        first = drop or loss
        if first is None:
            continue
        what = "the drop" if drop else "delta CE"
        text = (
            f"With the adapter {first['adapter']} {_share_text(first)} of {what} of "
            f"{names[str(first['variant'])]} comes back"
        )
        text += f", and {_share_text(loss)} of its delta CE" if drop and loss else ""
        if drop and is_number(drop["drop_alone"]):
            sign, verb = (1, "costs") if drop["drop_alone"] >= 0 else (-1, "gains")
            text += f"; alone it {verb} {fixed_decimals(sign * drop['drop_alone'])} points"
        sentences.append(f"{text}.")
    return sentences


def _share_text(row: Mapping[str, Any]) -> str:
    return f"{share(row['share'])} ({interval_text(row['share_low'], row['share_high'], share)})"


def _where(row: Mapping[str, Any]) -> str:
    if row["section"] == "text":
        return f"{row['measure']} on text"
    return "accuracy" if row["section"] == "overall" else str(row["alias"])


def _amount(row: Mapping[str, Any], name: str, low: str, high: str) -> Cell:
    if row[name] is None:
        return Cell(NA)
    show = fixed_decimals if row["measure"] == ACCURACY else significant
    bounds = "" if row[low] is None else f"[{show(row[low])}, {show(row[high])}]"
    return number_cell(row[name], show(row[name]), bounds)


def _share(row: Mapping[str, Any]) -> Cell:
    if row["share"] is None:
        return Cell(NA)
    bounds = "" if row["share_low"] is None else f"[{percent(row['share_low'])}, {percent(row['share_high'])}]"
    return number_cell(row["share"], f"{percent(row['share'])}%", bounds)
