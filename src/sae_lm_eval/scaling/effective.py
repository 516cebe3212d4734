"""Effective compute: every definition side by side, from a baseline and a spliced loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling.curve_estimates import CHECKPOINTS, INTERPOLATION, checkpoint_estimate, family_estimates
from sae_lm_eval.scaling.delta import DeltaCE, delta_from_losses
from sae_lm_eval.scaling.estimate import Draws, Estimate
from sae_lm_eval.scaling.family import Family, read_family
from sae_lm_eval.scaling.fit import load_law
from sae_lm_eval.scaling.law_estimates import (
    AT_THE_LOSS,
    COMPUTE,
    FAMILY_FIT,
    LAW_RELATIVE,
    at_the_loss,
    law_relative,
)
from sae_lm_eval.scaling.laws import DEFAULT_LAW, Law, laws
from sae_lm_eval.scaling.original_model import Original, get_original

# Measured on the text at hand before borrowed, between measured points before extrapolated, and the original's own
# course before other models: docs/effective-compute.md has the figures.
PREFERENCE = (CHECKPOINTS, INTERPOLATION, FAMILY_FIT, LAW_RELATIVE, AT_THE_LOSS)


@dataclass(frozen=True, kw_only=True)
class LawSpread:
    """How far the laws disagree on law-relative effective compute: not part of any interval."""

    low: float
    high: float
    laws: tuple[str, ...]

    @property
    def decades(self) -> float:
        return math.log10(self.high / self.low)


@dataclass(frozen=True, kw_only=True)
class EffectiveCompute:
    """The estimates of one splice, with the losses and the original they were made from."""

    delta: DeltaCE
    original: Original
    estimates: tuple[Estimate, ...]
    level: float

    @property
    def preferred(self) -> Estimate:
        """The effective compute to quote: the first defined one in the order of `PREFERENCE`.

        Where measured curves end, their bound comes before what a borrowed law says.
        """
        compute = [estimate for estimate in self.estimates if estimate.quantity == COMPUTE]

        def rank(estimate: Estimate) -> tuple[bool, float]:
            place = PREFERENCE.index(estimate.definition)
            if estimate.fraction is not None:
                return False, place
            measured = estimate.definition in (CHECKPOINTS, INTERPOLATION)
            return estimate.bound is None, (PREFERENCE.index(FAMILY_FIT) if measured else place) + 0.5

        return min(compute, key=rank)

    @property
    def law_spread(self) -> LawSpread | None:
        """Spread between laws; None with fewer than two that are in force and apply."""
        found = {
            estimate.curve: estimate.fraction
            for estimate in self.estimates
            if (estimate.quantity, estimate.definition) == (COMPUTE, LAW_RELATIVE)
            and estimate.fraction is not None
            and not any(flag.startswith("superseded") for flag in estimate.flags)
        }
        if len(found) < 2:
            return None
        return LawSpread(low=min(found.values()), high=max(found.values()), laws=tuple(found))

    def record(self) -> dict[str, Any]:
        """The estimate to quote with what it was made from, as plain values for a file of results."""
        row = _row(self.preferred)
        kept = ("definition", "fraction", "low", "high", "level", "covers", "bound", "constants", "source")
        return {
            "law": self.preferred.curve,
            **{name: row[name] for name in kept},
            "flags": list(self.preferred.flags),
            "reason": self.preferred.reason,
            "params": self.original.params,
            "tokens": self.original.tokens,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per estimate, with the curve's constants and source, for tables and result files."""
        rows = [_row(estimate) for estimate in self.estimates]
        return pd.DataFrame(rows, dtype=object)  # object keeps None as None


def effective_compute(
    delta: DeltaCE | None = None,
    *,
    ce_baseline: float | None = None,
    ce_spliced: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    vocabulary: int | None = None,
    model: str | None = None,
    original: Original | None = None,
    law: str | Path | Law | Sequence[str | Law] = DEFAULT_LAW,
    family: str | Path | Family | None = None,
    checkpoints: str | Path | Family | None = None,
    law_text: str = "other",
    level: float = 0.95,
    draws: int = 4000,
    rng: np.random.Generator | int | None = 0,
) -> EffectiveCompute:
    """What fraction of the original's training compute buys the loss of the spliced model.

    Give either a `DeltaCE` or two losses (nats/token, same tokens), and the original: a known `model`, `params` (with
    embeddings) and training `tokens`, or an `Original`. From training `flops` follows the one of the two that is not
    given. A spliced loss above ln(`vocabulary`) is not converted. `law` is a name, a JSON file of constants, a CSV of
    runs to fit, a law, a list of these, or "all". `family` and `checkpoints` are measured curves of the same text and
    context length.
    `law_text="same"` says that the law's text and tokenizer are those of the losses, which allows R = L - E.

    Undefined estimates are None with a reason; mistakes raise UserError.
    """
    if delta is None:
        if ce_baseline is None or ce_spliced is None:
            raise UserError("Effective compute needs two losses: ce_baseline and ce_spliced, in nats/token.")
        delta = delta_from_losses(ce_baseline=ce_baseline, ce_spliced=ce_spliced)
    elif ce_baseline is not None or ce_spliced is not None:
        raise UserError("Give a DeltaCE or two losses, not both.")
    if law_text not in ("same", "other"):
        raise UserError(f"law_text is {law_text!r}; it must be 'same' or 'other'.")
    original = original or get_original(model=model, params=params, tokens=tokens, flops=flops, vocabulary=vocabulary)
    if delta.vocabulary is None:
        delta = replace(delta, vocabulary=original.vocabulary)
    drawn = Draws.of(delta, n=draws, level=level, rng=np.random.default_rng(rng))
    chosen = _laws(law)
    estimates: list[Estimate] = []
    if family is not None:
        family = family if isinstance(family, Family) else read_family(family)
        estimates += family_estimates(family, original, drawn)
    for one in chosen:
        estimates += law_relative(one, original, drawn)
        if law_text == "same":
            estimates.append(at_the_loss(one, drawn, definition=AT_THE_LOSS, caveats=original.caveats))
    if checkpoints is not None:
        if not isinstance(checkpoints, Family):
            checkpoints = read_family(checkpoints, kind="checkpoints")
        estimates.append(checkpoint_estimate(checkpoints, drawn))
    return EffectiveCompute(delta=delta, original=original, estimates=tuple(estimates), level=level)


def _laws(law: str | Path | Law | Sequence[str | Law]) -> list[Law]:
    if isinstance(law, str) and law == "all":
        return list(laws().values())
    several = [law] if isinstance(law, str | Path | Law) else list(law)
    return [load_law(one) for one in several]


def _row(estimate: Estimate) -> dict[str, Any]:
    interval = estimate.interval
    return {
        "quantity": estimate.quantity,
        "definition": estimate.definition,
        "curve": estimate.curve,
        "fraction": estimate.fraction,
        "log10": estimate.log10,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "level": interval.level if interval else None,
        "covers": " + ".join(interval.covers) if interval else "",
        "bound": estimate.bound or "",
        "equivalent": estimate.equivalent,
        "unit": estimate.unit,
        "reason": estimate.reason or "",
        "flags": "; ".join(estimate.flags),
        "constants": ", ".join(f"{key}={value:.6g}" for key, value in estimate.constants.items()),
        "source": estimate.source,
    }
