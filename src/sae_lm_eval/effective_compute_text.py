"""Text of the effective-compute tables: what the command prints and the documentation repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from sae_lm_eval.scaling import Estimate

NA = "n/a"


def number(value: Any) -> str:
    """Six digits, or n/a for None."""
    if value is None:
        return NA
    return f"{value:.6g}" if isinstance(value, int | float) else str(value)


def fraction(estimate: Estimate) -> str:
    """The fraction with its interval, and the bound where the range of the curve ends."""
    if estimate.fraction is None:
        return f"{NA}, {estimate.bound}" if estimate.bound else NA
    text = f"{estimate.fraction:.3g}"
    if estimate.interval is not None:
        low, high = estimate.interval.low, estimate.interval.high
        text += f" ({'0' if low is None else f'{low:.3g}'} to {'unbounded' if high is None else f'{high:.3g}'})"
    return f"{text}, {estimate.bound} in range" if estimate.bound else text


def literature_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """The converted literature as text, one row per dictionary."""
    from sae_lm_eval.scaling import works

    rows = []
    for row in table.to_dict("records"):
        value = row["effective_compute"]
        span = "" if row["low"] is None else f" ({row['low']:.3g} to {row['high']:.3g})"
        rows.append(
            {
                "work": works()[row["work"]]["short"],
                "model": row["model"],
                "site": f"{row['site']} {row['layer'] or ''}".strip(),
                "L0": number(row["l0"]),
                "CE": number(row["ce_baseline"]),
                "spliced": number(row["ce_spliced"]),
                "ablated": NA if row["ce_ablated"] is None else f"{number(row['ce_ablated'])} {row['ablation']}",
                "loss recovered": number(row["loss_recovered"]),
                "delta CE": number(row["delta_ce"]),
                "effective compute": f"{NA}: {row['reason']}" if value is None else f"{value:.3g}{span}",
            }
        )
    return rows


def summary_rows(summary: pd.DataFrame) -> list[dict[str, str]]:
    """The literature by work, model and site, as text: least and greatest of each figure."""
    from sae_lm_eval.scaling import works

    rows = []
    for row in summary.to_dict("records"):
        compute = _span(row, "effective_compute", ".2g")
        rows.append(
            {
                "work": works()[row["work"]]["short"],
                "model": row["model"],
                "site": row["site"],
                "dictionaries": str(row["dictionaries"]),
                "loss recovered": _span(row, "loss_recovered", ".4g"),
                "delta CE": _span(row, "delta_ce", ".3g"),
                "effective compute": f"{NA}: {row['reason']}" if compute == NA else compute,
            }
        )
    return rows


def _span(row: dict[str, Any], column: str, digits: str) -> str:
    low, high = row[f"{column}_min"], row[f"{column}_max"]
    if low is None:
        return NA
    least, most = f"{low:{digits}}", f"{high:{digits}}"
    return least if least == most else f"{least} to {most}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of text as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
