"""Effective compute: every definition side by side, from a baseline and a spliced loss."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling.calibration import CALIBRATED, calibrate, check_text
from sae_lm_eval.scaling.curve_estimates import (
    CHECKPOINTS,
    INTERPOLATION,
    PUBLISHED,
    checkpoint_estimate,
    family_estimates,
    published_estimates,
)
from sae_lm_eval.scaling.delta import DeltaCE, delta_from_losses
from sae_lm_eval.scaling.estimate import Draws, Estimate
from sae_lm_eval.scaling.family import Family, read_family
from sae_lm_eval.scaling.ladder import ladder_law
from sae_lm_eval.scaling.law_estimates import (
    AT_THE_LOSS,
    COMPUTE,
    FAMILY_FIT,
    LAW_RELATIVE,
    TOKENS,
    at_the_loss,
    law_relative,
)
from sae_lm_eval.scaling.law_sources import load_law
from sae_lm_eval.scaling.laws import DEFAULT_LAW, Law, laws
from sae_lm_eval.scaling.loss_units import in_units_of, unusual_baseline
from sae_lm_eval.scaling.original_model import Original, OriginalNumbers, get_original

# By what they are off known truth, least first: measured on the text at hand before published, calibrated before within
# a law, and of two laws the one of the text. docs/calibration.md has the figures.
PREFERENCE = (CHECKPOINTS, INTERPOLATION, FAMILY_FIT, PUBLISHED, CALIBRATED, LAW_RELATIVE, AT_THE_LOSS)


@dataclass(frozen=True, kw_only=True)
class LawSpread:
    """How far the laws disagree on the effective compute within each: not part of any interval.

    The laws are those in force, those that were asked, and that of the text.
    """

    low: float
    high: float
    laws: tuple[str, ...]

    @property
    def decades(self) -> float:
        return math.log10(self.high / self.low)


@dataclass(frozen=True, kw_only=True)
class EffectiveCompute:
    """The estimates of one splice, with the losses and the original they were made from.

    `law_spread` is None where fewer than two laws apply.
    """

    delta: DeltaCE
    original: Original
    estimates: tuple[Estimate, ...]
    level: float
    law_spread: LawSpread | None = None
    text: str | None = None

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
    def within_the_law(self) -> Estimate | None:
        """What the first law says, beside which the spread of the laws and the calibration stand."""
        candidates = (e for e in self.estimates if (e.quantity, e.definition) == (COMPUTE, LAW_RELATIVE))
        return next(candidates, None)

    @property
    def calibrated(self) -> Estimate | None:
        """The calibrated estimate of the same law."""
        within = self.within_the_law
        candidates = (e for e in self.estimates if (e.quantity, e.definition) == (COMPUTE, CALIBRATED))
        return next((e for e in candidates if within is not None and e.curve == within.curve), None)

    def record(self) -> dict[str, Any]:
        """The estimate to quote with what it was made from, as plain values for a file of results."""
        quoted, original = self.preferred, self.original
        interval, within, calibrated = quoted.interval, self.within_the_law, self.calibrated
        return {
            "fraction": quoted.fraction,
            "low": interval and interval.low,
            "high": interval and interval.high,
            "law": quoted.curve,
            "flags": list(quoted.flags),
            "reason": quoted.reason,
            "bound": quoted.bound,
            "definition": quoted.definition,
            "source": quoted.source,
            "constants": quoted.constants,
            "level": interval and interval.level,
            "covers": list(interval.covers) if interval else [],
            "within_the_law": within and estimate_record(within),
            "calibrated": calibrated and estimate_record(calibrated),
            "law_spread": self.law_spread and [self.law_spread.low, self.law_spread.high],
            "text": self.text,
            "model": original.name,
            "params": original.params,
            "params_source": original.params_source,
            "tokens": original.tokens,
            "tokens_source": original.tokens_source,
            "vocabulary": original.vocabulary,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per estimate, with the curve's constants and source, for tables and result files."""
        rows = [_row(estimate) for estimate in self.estimates]
        return pd.DataFrame(rows, dtype=object)  # object keeps None as None


def estimate_record(estimate: Estimate) -> dict[str, Any]:
    """An estimate's law, fraction, interval and reason as plain values."""
    interval = estimate.interval
    return {
        "law": estimate.curve,
        "fraction": estimate.fraction,
        "low": interval and interval.low,
        "high": interval and interval.high,
        "reason": estimate.reason,
    }


def effective_compute(
    delta: DeltaCE | None = None,
    *,
    ce_baseline: float | None = None,
    ce_spliced: float | None = None,
    original: Original | None = None,
    law: str | Path | Law | Sequence[str | Law] = DEFAULT_LAW,
    text: str | None = None,
    family: str | Path | Family | None = None,
    checkpoints: str | Path | Family | None = None,
    law_text: str = "other",
    level: float = 0.95,
    draws: int = 4000,
    rng: np.random.Generator | int | None = 0,
    **numbers: Unpack[OriginalNumbers],
) -> EffectiveCompute:
    """What fraction of the original's training compute buys the loss of the spliced model.

    Give either a `DeltaCE` or two losses (nats/token, same tokens), and the original: a known `model`, `params` (with
    embeddings) and training `tokens`, or an `Original`. From training `flops` follows the one of the two that is not
    given. A spliced loss above ln(`vocabulary`) is not converted. `law` is a name, a JSON file of constants, a CSV of
    runs to fit, a law, a list of these, or "all". `text` names the text of the losses where it is one that known pairs
    of models are of (docs/calibration.md). `family` and `checkpoints` are measured curves of the same text and
    context length. `law_text="same"` says that the law's text and tokenizer are those of the losses, which allows
    R = L - E. `bytes_per_token` converts the losses for a curve of which it is known too.

    Undefined estimates are None with a reason; mistakes raise UserError.
    """
    delta = _delta(delta, ce_baseline, ce_spliced)
    if law_text not in ("same", "other"):
        raise UserError(f"law_text is {law_text!r}; it must be 'same' or 'other'.")
    check_text(text)
    original = original or get_original(**numbers)
    if delta.vocabulary is None:
        delta = replace(delta, vocabulary=original.vocabulary)
    drawn = Draws.from_delta(delta, n=draws, level=level, rng=np.random.default_rng(rng))
    estimates: list[Estimate] = []
    if family is not None:
        family = with_text_flag(family if isinstance(family, Family) else read_family(family), text)
        estimates += family_estimates(family, original, drawn)
    chosen = _chosen(law, text)
    for chosen_law in chosen:
        estimates += _by_law(chosen_law, original, drawn, text)
        if law_text == "same":
            estimates.append(at_the_loss(chosen_law, drawn, definition=AT_THE_LOSS, caveats=original.caveats))
    if checkpoints is not None:
        if not isinstance(checkpoints, Family):
            checkpoints = read_family(checkpoints, kind="checkpoints")
        estimates.append(checkpoint_estimate(checkpoints, drawn))
    estimates += published_estimates(original, drawn, text)
    return EffectiveCompute(
        delta=delta,
        original=original,
        estimates=tuple(estimates),
        level=level,
        law_spread=_spread(delta, original, chosen),
        text=text,
    )


def with_text_flag(family: Family, text: str | None) -> Family:
    """The family, which says so where it is on another text than the losses."""
    if text is None or family.text == "unstated" or text.casefold() in family.text.casefold():
        return family
    across = f"the losses are on {text}, and the family's on {family.text}: a rise on one text is read on another"
    return replace(family, flags=(*family.flags, across))


def _delta(delta: DeltaCE | None, ce_baseline: float | None, ce_spliced: float | None) -> DeltaCE:
    if delta is not None:
        if ce_baseline is not None or ce_spliced is not None:
            raise UserError("Give a DeltaCE or two losses, not both.")
        return delta
    if ce_baseline is None or ce_spliced is None:
        raise UserError("Effective compute needs two losses: ce_baseline and ce_spliced, in nats/token.")
    return delta_from_losses(ce_baseline=ce_baseline, ce_spliced=ce_spliced)


def _chosen(law: str | Path | Law | Sequence[str | Law], text: str | None) -> list[Law]:
    """The laws asked for, after the one that was fitted to the text."""
    if isinstance(law, str) and law == "all":
        requested_laws = list(laws().values())
    else:
        requested_laws = [load_law(item) for item in ([law] if isinstance(law, str | Path | Law) else law)]
    own = [] if text is None else [ladder_law(text)]
    return [*own, *(item for item in requested_laws if item.name not in {fitted.name for fitted in own})]


def _by_law(law: Law, original: Original, draws: Draws, text: str | None) -> Iterator[Estimate]:
    """What is within a law, and what becomes of it by known pairs."""
    scaled, units = in_units_of(law, original, draws)
    unusual = unusual_baseline(original, draws.delta.baseline, text)
    for within in law_relative(law, original, scaled):
        if within.fraction is None or within.quantity == TOKENS:
            yield within
            continue
        within = replace(within, flags=(*within.flags, *units, *unusual))
        calibrated = calibrate(within, law, original, scaled, text)
        if calibrated.fraction is None and calibrated.reason is not None:
            within = replace(within, flags=(*within.flags, calibrated.reason))
        yield within
        yield calibrated


def _spread(delta: DeltaCE, original: Original, chosen: Sequence[Law]) -> LawSpread | None:
    """Of the laws in force and the chosen ones, the least and greatest effective compute within the law; None of fewer
    than two."""
    point = Draws.from_delta(
        replace(delta, per_document=None, standard_error=None), n=100, level=0.95, rng=np.random.default_rng(0)
    )
    fractions = {}
    for law in {**laws(), **{law.name: law for law in chosen}}.values():
        if not law.superseded:
            estimate = law_relative(law, original, in_units_of(law, original, point)[0])[0]
            if estimate.fraction is not None:
                fractions[law.name] = estimate.fraction
    if len(fractions) < 2:
        return None
    return LawSpread(low=min(fractions.values()), high=max(fractions.values()), laws=tuple(fractions))


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
        "same_training_params": estimate.same_training and estimate.same_training[0],
        "same_training_tokens": estimate.same_training and estimate.same_training[1],
        "reason": estimate.reason or "",
        "flags": "; ".join(estimate.flags),
        "constants": ", ".join(f"{key}={value:.6g}" for key, value in estimate.constants.items()),
        "source": estimate.source,
    }
