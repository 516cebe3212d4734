"""Published reconstruction figures, converted to effective compute.

Every row of `literature.csv` was read in a copy of the work that it names; `where` says which table. Figures
that a work prints only as a plot are not in the file.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.scaling.data_files import Row, data_path, read_rows
from sae_lm_eval.scaling.delta import DeltaCE
from sae_lm_eval.scaling.estimate import Draws, Estimate
from sae_lm_eval.scaling.law_estimates import COMPUTE, LAW_RELATIVE, law_relative
from sae_lm_eval.scaling.law_sources import load_law
from sae_lm_eval.scaling.laws import DEFAULT_LAW, Law
from sae_lm_eval.scaling.original_model import Original, find_preset, get_original

KEYS = ["work", "model", "site"]
PRINTED = ("ce_baseline", "ce_spliced", "delta_ce", "loss_recovered")


@functools.cache
def cited_works() -> Mapping[str, dict[str, str]]:
    """The cited works by key: short name, full citation, address."""
    return MappingProxyType(json.loads(data_path("works.json").read_text(encoding="utf-8")))


def convert_literature(
    law: str | Path | Law = DEFAULT_LAW, *, level: float = 0.95, draws: int = 2000, rng: int = 0
) -> pd.DataFrame:
    """The published figures with effective compute within the law; None and a reason where undefined.

    The interval covers the law's parameters alone: no work publishes the standard error of delta CE.
    `ce_ablated` is the published one, or the one that loss recovered and delta CE imply.
    """
    curve = load_law(law)
    rows = read_rows(data_path("literature.csv"), required=["work", "model", "delta_ce", "loss_recovered"])
    converted = [_convert(row, curve, level=level, draws=draws, rng=rng) for row in rows]
    return pd.DataFrame(converted, dtype=object)


def summarise_literature(table: pd.DataFrame) -> pd.DataFrame:
    """Ranges of loss recovered, delta CE and effective compute per work, model and site; `bound` is the least that is
    said of a dictionary outside the law. The figures rest on `evaluated_tokens`, None where the work does not say how
    many, and are printed to `decimals`.
    """
    rows = []
    for _, group in table.groupby(KEYS, sort=False):
        spans = {}
        for column in ("loss_recovered", "delta_ce", "effective_compute"):
            values = [value for value in group[column] if value is not None]
            spans[f"{column}_min"] = min(values) if values else None
            spans[f"{column}_max"] = max(values) if values else None
        reasons = [reason for reason in group["reason"] if reason]
        outside = group.loc[[value is None for value in group["effective_compute"]], "bound"]
        bounds = sorted((bound for bound in outside if bound.startswith("<")), key=lambda b: float(b[2:]))
        head = group.iloc[0]
        named = {column: head[column] for column in KEYS}
        rows.append(
            {
                **named,
                "dictionaries": len(group),
                **spans,
                "evaluated_tokens": head["evaluated_tokens"],
                "decimals": max((_decimals(value) for name in PRINTED for value in group[name]), default=0),
                "bound": bounds[0] if bounds else "",
                "reason": reasons[0] if reasons else "",
            }
        )
    return pd.DataFrame(rows, dtype=object)


def _convert(row: Row, law: Law, *, level: float, draws: int, rng: int) -> dict[str, Any]:
    estimate = _estimate(row, law, level=level, draws=draws, rng=rng)
    interval = estimate.interval
    return {
        **{key: row[key] for key in (*KEYS, "dictionary", "layer", "dict_size", "l0")},
        **{key: row[key] for key in ("ce_baseline", "ce_spliced", "delta_ce", "loss_recovered", "ablation")},
        "ce_ablated": _ablated(row),
        "evaluated_tokens": row["evaluated_tokens"],
        "effective_compute": estimate.fraction,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "bound": estimate.bound or "",
        "law": estimate.curve,
        "reason": estimate.reason or "",
        "flags": "; ".join(estimate.flags),
        "text": row["text"] or "",
        "where": row["where"],
        "note": row["note"] or "",
    }


def _estimate(row: Row, law: Law, *, level: float, draws: int, rng: int) -> Estimate:
    blank = Estimate(quantity=COMPUTE, definition=LAW_RELATIVE, curve=law.name, source=law.source)
    if row["reported_effective_compute"] is not None:
        return Estimate(
            quantity=COMPUTE,
            definition="as reported",
            curve="not stated",
            source=row["where"],
            fraction=row["reported_effective_compute"],
            flags=("reported by the work itself, without delta CE",),
        )
    if row["delta_ce"] is None:
        return replace(blank, reason="only loss recovered is published, without the losses it was made from")
    original = _original(row)
    if original is None:
        return replace(blank, reason="the law speaks of pretrained base models, and this is none")
    delta = DeltaCE(value=row["delta_ce"], baseline=row["ce_baseline"], spliced=row["ce_spliced"])
    drawn = Draws.from_delta(delta, n=draws, level=level, rng=np.random.default_rng(rng))
    return law_relative(law, original, drawn)[0]


def _original(row: Row) -> Original | None:
    if row["preset"] is None or find_preset(row["preset"]) is None:
        return None
    if row["assumed_tokens"] is None:
        return get_original(model=row["preset"])
    original = get_original(model=row["preset"], tokens=row["assumed_tokens"])
    return replace(original, tokens_status="assumed")


def _decimals(value: float | None) -> int:
    return 0 if value is None else len(repr(value).partition(".")[2])


def _ablated(row: Row) -> float | None:
    """The ablation CE: published, or baseline + delta/(1 - loss recovered) when the three are known."""
    if row["ce_ablated"] is not None:
        return row["ce_ablated"]
    numbers = [row[key] for key in ("ce_baseline", "delta_ce", "loss_recovered")]
    if any(value is None for value in numbers):
        return None
    baseline, delta, recovered = numbers
    return baseline + delta / (1 - recovered)
