"""Which rise of the loss leaves a given fraction: the inverse of effective compute within each law."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling.law_estimates import COMPUTE, PARAMETERS, TOKENS, rise_for
from sae_lm_eval.scaling.laws import Law, ParametricLaw
from sae_lm_eval.scaling.original_model import Original


def loss_rises(fraction: float, original: Original, laws: Sequence[Law]) -> pd.DataFrame:
    """The rise (nats/token) that leaves `fraction` of the compute, parameters or tokens, a row by law and quantity.

    Delta = R (f^-s - 1), always answered; `flags` say where the law is asked beyond its range. Raises UserError for a
    fraction that is not positive and for an original of which too little is known.
    """
    if not (math.isfinite(fraction) and fraction > 0):
        raise UserError(f"The fraction is {fraction}; it must be a positive number, such as 0.1 for a tenth.")
    if original.compute is None:
        raise UserError(f"The rise of the loss {original.lacks}.")
    rows = []
    whole = original.params is not None and original.tokens is not None
    for law in laws:
        quantities = (COMPUTE, PARAMETERS, TOKENS) if whole and isinstance(law, ParametricLaw) else (COMPUTE,)
        for quantity in quantities:
            rise = rise_for(law, original, fraction, quantity)
            rows.append(
                {
                    "quantity": quantity,
                    "law": law.name,
                    "fraction": fraction,
                    "delta_ce": rise,
                    "perplexity_ratio": math.exp(rise),
                    "flags": "; ".join([*_flags(law, original, fraction), *original.caveats]),
                    "source": law.source,
                }
            )
    return pd.DataFrame(rows, dtype=object)


def _flags(law: Law, original: Original, fraction: float) -> list[str]:
    flags = []
    if law.superseded:
        flags.append(f"superseded law: {law.superseded}")
    if not isinstance(law, ParametricLaw) or original.params is None or original.tokens is None:
        flags.append("the original is taken as compute-optimal")
    if law.flops_range is None:
        return [*flags, "the range of this law in FLOPs is not known"]
    low, high = law.flops_range
    own = original.compute or math.nan
    for who, amount in (("the original", own), ("what is left", own * fraction)):
        if not low <= amount <= high:
            flags.append(f"{who}, {amount:.3g} FLOPs, is outside of {low:.3g} to {high:.3g}: extrapolated")
    return flags
