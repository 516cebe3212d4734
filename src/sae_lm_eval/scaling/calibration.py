"""What a law's fraction is worth where it can be checked: the shipped table of known pairs, and its use.

`data/calibration.csv` is made by scripts/calibration.py. It holds of each law, quantity, text and number of tokens per
parameter the bias log k and the half width w that it finds with pairs held out. A calibrated fraction is f^(1/k), its
interval f^(1/(k e^-w)) to f^(1/(k e^w)), wider by what the documents add. Nothing is said outside of what was measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import numpy as np
from scipy.special import ndtri

from sae_lm_eval.scaling.data_files import data_path, read_rows, unknown
from sae_lm_eval.scaling.estimate import Draws, Estimate, Interval
from sae_lm_eval.scaling.ladder import ladder_texts
from sae_lm_eval.scaling.law_estimates import COMPUTE, PARAMETERS, log_relative
from sae_lm_eval.scaling.laws import Law
from sae_lm_eval.scaling.original_model import Original

CALIBRATED = "law, calibrated"
ANY = "any"  # the row for a text that is not named, made without the text that is asked for
NOT = "not calibrated: "
SLACK = 1.05  # beyond the ends of what was measured; a count of parameters is no more exact
TABLE_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """How far a law was off on known pairs of one text and number of tokens per parameter.

    `off` is the geometric mean of the law's fraction over the truth. `coverage` and `width` (upper over lower bound,
    median) are those of intervals on pairs of a size that they were made without.
    """

    law: str
    quantity: str
    text: str
    tokens_per_parameter: float | None
    log_bias: float
    half_width: float
    off: float
    pairs: int
    coverage: float
    width: float
    params_low: float
    params_high: float
    tokens: float | None


@functools.cache
def calibration_table() -> Mapping[tuple[str, str, str], tuple[CalibrationRow, ...]]:
    """The rows by law, quantity and text, by their tokens per parameter."""
    names = [field.name for field in fields(CalibrationRow)]
    table: dict[tuple[str, str, str], list[CalibrationRow]] = {}
    for row in read_rows(data_path("calibration.csv"), required=names):
        entry = CalibrationRow(**{name: row[name] for name in names})
        table.setdefault((entry.law, entry.quantity, entry.text), []).append(entry)
    return MappingProxyType({key: tuple(rows) for key, rows in table.items()})


def check_text(text: str | None) -> None:
    """Raises UserError for a text that the table does not have."""
    if text is not None and text not in ladder_texts():
        raise unknown("text with known pairs", text, ladder_texts())


def calibrate(within: Estimate, law: Law, original: Original, draws: Draws, text: str | None) -> Estimate:
    """The estimate that a law's becomes by the known pairs of a text, or of all where it is None.

    Undefined, with the reason, outside of what was measured.
    """
    blank = Estimate(quantity=within.quantity, definition=CALIBRATED, curve=law.name, source=within.source)
    blank = replace(blank, constants=within.constants, unit="")
    if within.fraction is None:
        return replace(blank, reason=within.reason)
    row = _row(within, law, original, text)
    if isinstance(row, str):
        return replace(blank, reason=NOT + row)
    log_f = log_relative(law, original, draws.delta.value, within.quantity)
    centre = log_f * math.exp(-row.log_bias)
    worth = (original.params or math.nan) * math.exp(centre / (2 if within.quantity == COMPUTE else 1))
    if worth * SLACK < row.params_low:
        least = f"{row.params_low:.3g}"
        return replace(blank, reason=f"{NOT}the smallest model of the known pairs has {least} parameters")
    ends = _with_documents(row, law, original, draws, within.quantity, centre)
    covers = ("known pairs", "documents") if draws.delta.uncertain else ("known pairs",)
    return replace(
        blank,
        fraction=math.exp(centre),
        interval=Interval(low=ends[0], high=ends[1], level=draws.level, covers=covers),
        flags=(*within.flags, _flag(row)),
    )


def _with_documents(
    row: CalibrationRow, law: Law, original: Original, draws: Draws, quantity: str, centre: float
) -> tuple[float, float]:
    """The interval's ends: what the pairs and the documents each allow, added in quadrature on the log scale."""
    wide = row.half_width * ndtri((1 + draws.level) / 2) / ndtri((1 + TABLE_LEVEL) / 2)
    sides = [centre * math.expm1(sign * wide) for sign in (1, -1)]
    documents = [0.0, 0.0]
    if draws.delta.uncertain:
        tail = (1 - draws.level) / 2
        most, least = np.quantile(draws.deltas, [1 - tail, tail], method="inverted_cdf")
        fractions = (log_relative(law, original, float(rise), quantity) for rise in (most, least))
        documents = [value * math.exp(-row.log_bias) - centre for value in fractions]
    reach = [math.hypot(*pair) for pair in zip(sides, documents, strict=True)]
    return math.exp(centre - reach[0]), math.exp(centre + reach[1])


def _row(within: Estimate, law: Law, original: Original, text: str | None) -> CalibrationRow | str:
    """The row for an original, between two numbers of tokens per parameter their mean; or why there is none."""
    named = text if text is not None else ANY
    rows = calibration_table().get((law.name, within.quantity, named))
    if rows is None:
        on = "" if text is None else f" on {text}"
        return f"there are no known pairs{on} for {within.quantity} by {law.name}"
    if original.params is None or original.tokens is None:
        return "the parameters and training tokens of the original are not known"
    if within.fraction is not None and within.fraction > 1:
        return "the loss falls, and in known pairs it rises"
    low, high = rows[0].params_low, rows[0].params_high
    if not low / SLACK <= original.params <= high * SLACK:
        return f"known pairs have {low:.3g} to {high:.3g} parameters, and {original.name} has {original.params:.3g}"
    if within.quantity == PARAMETERS:
        tokens = rows[0].tokens or math.nan
        if not tokens / SLACK <= original.tokens <= tokens * SLACK:
            return f"known pairs saw {tokens:.3g} tokens, and {original.name} saw {original.tokens:.3g}"
        return rows[0]
    return _between(rows, original)


def _between(rows: Sequence[CalibrationRow], original: Original) -> CalibrationRow | str:
    ratio = (original.tokens or math.nan) / (original.params_non_embedding or original.params or math.nan)
    ratios = [float(row.tokens_per_parameter or math.nan) for row in rows]
    if not ratios[0] / SLACK <= ratio <= ratios[-1] * SLACK:
        return (
            f"known pairs have {ratios[0]:.0f} to {ratios[-1]:.0f} tokens per parameter (embeddings aside), and "
            f"{original.name} has {ratio:.0f}"
        )
    at = np.log(ratios)
    log_bias, off, wide = (
        float(np.interp(math.log(ratio), at, [value(row) for row in rows]))
        for value in (lambda row: row.log_bias, lambda row: math.log(row.off), lambda row: row.half_width)
    )
    return replace(rows[0], tokens_per_parameter=ratio, log_bias=log_bias, off=math.exp(off), half_width=wide)


def _flag(row: CalibrationRow) -> str:
    on = "all texts" if row.text == ANY else row.text
    at = "" if row.tokens_per_parameter is None else f" at {row.tokens_per_parameter:.0f} tokens per parameter"
    return (
        f"on known pairs ({on}{at}) the law gave {row.off:.2f} times the truth (geometric mean); intervals made "
        f"without a size held {row.coverage:.0%} of its pairs, the upper bound {row.width:.1f} times the lower (median)"
    )
