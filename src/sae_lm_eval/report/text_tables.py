"""Text of the effective-compute tables: what the command prints and the documentation repeats."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from sae_lm_eval.report.formatting import NA, general

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from sae_lm_eval.scaling import EffectiveCompute, Estimate
    from sae_lm_eval.scaling.of_results import Converted

CHECKPOINT_STEPS = (1000, 4000, 8000, 16000, 32000, 64000)  # of Pythia: a geometric course of the training
QUANTITIES = ("effective compute", "effective parameters", "effective tokens")


def fraction(estimate: Estimate) -> str:
    """The fraction with its interval, and the bound where the range of the curve ends."""
    if estimate.fraction is None:
        return f"{NA}, {estimate.bound}" if estimate.bound else NA
    text = f"{estimate.fraction:.3g}"
    if estimate.interval is not None:
        low, high = estimate.interval.low, estimate.interval.high
        text += f" ({'0' if low is None else f'{low:.3g}'} to {'unbounded' if high is None else f'{high:.3g}'})"
    return f"{text}, {estimate.bound} in range" if estimate.bound else text


def estimate_rows(result: EffectiveCompute, notes: dict[str, int]) -> list[dict[str, str]]:
    """Estimates as text, by quantity and definition, the undefined last.

    `notes` numbers what is said of them, and is added to.
    """
    order = list(dict.fromkeys((estimate.quantity, estimate.definition) for estimate in result.estimates))
    order.sort(key=lambda pair: QUANTITIES.index(pair[0]))
    rows = []
    for estimate in sorted(
        result.estimates,
        key=lambda estimate: (estimate.fraction is None, order.index((estimate.quantity, estimate.definition))),
    ):
        unit = f", worth in {estimate.unit}" if estimate.unit else ""
        rows.append(
            {
                "estimate": f"{estimate.quantity}, {estimate.definition}{unit}",
                "curve": estimate.curve,
                f"fraction ({result.level:.0%} interval)": fraction(estimate),
                "log10": NA if estimate.log10 is None else f"{estimate.log10:.2f}".replace("-0.00", "0.00"),
                "worth": NA if estimate.equivalent is None else f"{estimate.equivalent:.3g}",
                "notes": _marks(estimate, notes),
            }
        )
    return rows


def beside_the_law(result: EffectiveCompute) -> list[str]:
    """What stands beside a number within a law: the spread of the laws, the calibration, and what it is worth."""
    within, calibrated, spread = result.within_the_law, result.calibrated, result.law_spread
    if within is None or within.fraction is None:
        return []
    sentences = [f"Within the law {within.curve}: {fraction(within)}."]
    if spread is not None:
        sentences.append(
            f"Between {len(spread.laws)} laws: {spread.low:.3g} to {spread.high:.3g} "
            f"({spread.decades:.2f} decades); no interval above includes this."
        )
    if calibrated is not None and calibrated.fraction is not None:
        sentences.append(f"Calibrated on known pairs of models: {fraction(calibrated)}; docs/calibration.md.")
    elif calibrated is not None and calibrated.reason:
        sentences.append(f"{calibrated.reason[:1].upper()}{calibrated.reason[1:]}. The interval is one within the law.")
    if within.same_training is not None and within.equivalent is not None:
        params, tokens = within.same_training
        sentences.append(
            f"Within the law that loss is worth {within.fraction:.3g} of the original's own 6ND, trained as far beyond "
            f"the optimum as it was ({params:.3g} parameters on {tokens:.3g} tokens), or a compute-optimal model of "
            f"{within.equivalent:.3g} FLOPs."
        )
    return sentences


def curve_command(result: EffectiveCompute, like: Path | None = None, task: str = "TASK") -> str | None:
    """The command that measures the original's family on the run's text, where it has a family and no such curve.

    The smaller members and the original; where these are fewer than a fit needs, the original's own checkpoints.
    """
    from sae_lm_eval.scaling.curve_estimates import CHECKPOINTS, INTERPOLATION, PUBLISHED
    from sae_lm_eval.scaling.family import LEAST_MEMBERS, published_families
    from sae_lm_eval.scaling.law_estimates import FAMILY_FIT

    measured = result.preferred.definition in (CHECKPOINTS, INTERPOLATION, FAMILY_FIT)
    if measured or not any(estimate.definition == PUBLISHED for estimate in result.estimates):
        return None
    family = next(family for family in published_families() if result.original.name in family.models)
    own = f"EleutherAI/{result.original.name}"
    members = [f"EleutherAI/{name}" for name in family.models[: family.models.index(result.original.name)]]
    if len(members) + 1 < LEAST_MEMBERS:
        members = [f"{own}@step{step}" for step in CHECKPOINT_STEPS]
    text = "--output_path family.csv" if like is None else f"--like {shlex.quote(str(like))}"
    return f"sae-lm-eval curve --models {','.join([*members, own])} --task {task} {text}"


def rise_rows(frame: pd.DataFrame, notes: dict[str, int]) -> list[dict[str, str]]:
    """The rises that leave a fraction, as text; `notes` as in `estimate_rows`."""
    return [
        {
            "quantity": row["quantity"],
            "law": row["law"],
            "delta CE (nats/token)": f"{row['delta_ce']:.4g}",
            "perplexity times": f"{row['perplexity_ratio']:.4g}",
            "notes": ",".join(str(notes.setdefault(note, len(notes) + 1)) for note in row["flags"].split("; ") if note),
        }
        for row in sorted(frame.to_dict("records"), key=lambda row: QUANTITIES.index(row["quantity"]))
    ]


def converted_rows(conversions: list[Converted], notes: dict[str, int]) -> list[dict[str, str]]:
    """What results folders hold, as text, one row per variant and text or category; `notes` as in `estimate_rows`."""
    titles = [
        conversion.task if conversion.category is None else f"{conversion.task}, {conversion.category}"
        for conversion in conversions
    ]
    order = list(dict.fromkeys(titles))
    rows = []
    for title, conversion in sorted(zip(titles, conversions, strict=True), key=lambda pair: order.index(pair[0])):
        result, quoted = conversion.result, conversion.result.preferred
        silent = [
            f"{estimate.definition}: {estimate.reason}"
            for estimate in result.estimates
            if estimate.bound and estimate.fraction is None
        ]
        row = {
            "text": title,
            "variant": conversion.variant,
            "CE": general(result.delta.baseline, 5),
            "spliced": general(result.delta.spliced, 5),
            "effective compute": fraction(quoted),
            "by": f"{quoted.definition}, {quoted.curve}",
            "notes": _marks(quoted, notes, (*conversion.notes, *silent)),
        }
        laws, within = result.law_spread, result.within_the_law
        row["within the law"] = NA if within is None else fraction(within)
        row["between laws"] = NA if laws is None else f"{laws.low:.3g} to {laws.high:.3g}"
        rows.append(row)
    return rows


def _marks(estimate: Estimate, notes: dict[str, int], further: tuple[str, ...] = ()) -> str:
    own = [*([estimate.reason] if estimate.reason else []), *estimate.flags, *further]
    return ",".join(map(str, sorted({notes.setdefault(note, len(notes) + 1) for note in own})))


def literature_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """The converted literature as text, one row per dictionary."""
    from sae_lm_eval.scaling import cited_works

    rows = []
    for row in table.to_dict("records"):
        value = row["effective_compute"]
        rows.append(
            {
                "work": cited_works()[row["work"]]["short"],
                "model": row["model"],
                "site": row["site"],
                "layer": str(row["layer"] or ""),
                "L0": general(row["l0"], 4),
                "CE": general(row["ce_baseline"], 5),
                "spliced": general(row["ce_spliced"], 5),
                "ablated": NA if row["ce_ablated"] is None else f"{general(row['ce_ablated'], 5)} {row['ablation']}",
                "recovered": general(row["loss_recovered"], 4),
                "delta CE": general(row["delta_ce"], 4),
                "effective": row["bound"] or f"{NA}: {row['reason']}" if value is None else f"{value:.3g}",
            }
        )
    return rows


def summary_rows(summary: pd.DataFrame) -> list[dict[str, str]]:
    """The literature by work, model and site, as text: least and greatest of each figure."""
    from sae_lm_eval.scaling import cited_works

    rows = []
    for row in summary.to_dict("records"):
        compute = _span(row, "effective_compute", ".2g")
        if row["bound"]:
            least = f"< {float(row['bound'][2:]):.2g}"
            compute = least if compute == NA else f"{least} to {compute.rpartition(' ')[2]}"
        rows.append(
            {
                "work": cited_works()[row["work"]]["short"],
                "model": row["model"],
                "site": row["site"],
                "dictionaries": str(row["dictionaries"]),
                "loss recovered": _span(row, "loss_recovered", ".4g"),
                "delta CE": _span(row, "delta_ce", ".3g"),
                "effective compute": f"{NA}: {row['reason']}" if compute == NA else compute,
                "rests on": _basis(row),
            }
        )
    return rows


def _basis(row: dict[str, Any]) -> str:
    tokens = row["evaluated_tokens"]
    if not row["decimals"]:
        return "no losses stated"
    counted = "tokens not stated" if tokens is None else f"{tokens:,.0f} tokens"
    return f"{counted}, {row['decimals']} decimals"


def _span(row: dict[str, Any], column: str, digits: str) -> str:
    low, high = row[f"{column}_min"], row[f"{column}_max"]
    if low is None:
        return NA
    least, most = f"{low:{digits}}", f"{high:{digits}}"
    return least if least == most else f"{least} to {most}"


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows of text as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
