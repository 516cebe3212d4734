"""`norm_factor`: what activations were multiplied by in training. No torch, so that mistakes are told before it."""

from __future__ import annotations

import math
from typing import Any

from sae_lm_eval.errors import UserError


def factors_of(norm_factor: Any) -> list[float]:
    """One factor, or several as `IN:OUT`; none where one of them is no number above 0."""
    if isinstance(norm_factor, bool):
        return []
    try:
        factors = [float(part) for part in str(norm_factor).split(":")]
    except ValueError:
        return []
    return factors if all(0 < factor < math.inf for factor in factors) else []


def check_norm_factor(norm_factor: Any) -> None:
    """Raise `UserError` where it is given, and has a part that is no number above 0."""
    if norm_factor is not None and not factors_of(norm_factor):
        raise UserError(f"norm_factor={norm_factor} must be a number above 0, as in norm_factor=0.25.")
