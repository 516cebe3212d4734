"""The definitions of effective compute that live on a scaling law."""

import math
from dataclasses import dataclass, replace

import numpy as np

from sae_lm_eval.scaling.delta import DeltaCE
from sae_lm_eval.scaling.estimate import Draws, Estimate, Terms, place
from sae_lm_eval.scaling.laws import ComputeLaw, Law, ParametricLaw
from sae_lm_eval.scaling.original_model import Original

LAW_RELATIVE = "law-relative"
AT_THE_LOSS = "law at the measured loss"
FAMILY_FIT = "family fit"
COMPUTE, PARAMETERS, TOKENS = "effective compute", "effective parameters", "effective tokens"


@dataclass(frozen=True)
class _Definition:
    quantity: str
    terms: Terms
    unit: str
    own: float | None  # the original's own amount of the resource; None when it follows from the curve
    floor: str


def law_relative(law: Law, original: Original, draws: Draws) -> list[Estimate]:
    """Effective compute, parameters and tokens with R from the law at the original's own size and data."""
    lacks = original.lacks
    if isinstance(law, ComputeLaw) and original.flops is not None:
        lacks = None
    blank = [_blank(law, quantity, LAW_RELATIVE) for quantity in (COMPUTE, PARAMETERS, TOKENS)]
    if lacks is not None:
        return [replace(estimate, reason=lacks) for estimate in blank]
    common = (*_caveats(law, draws.delta), *original.caveats)
    if isinstance(law, ComputeLaw):
        return [_on_frontier(law, original, draws, blank[0], common)] + [
            replace(estimate, reason="this law speaks of compute alone, not of parameters and tokens")
            for estimate in blank[1:]
        ]
    params, counting = _count(law, original)
    common = (*common, *counting)
    deviations = draws.parameters(law.covariance)
    return [
        _estimate(law, definition, draws, deviations, estimate, common)
        for definition, estimate in zip(_definitions(params, original.tokens or math.nan), blank, strict=True)
    ]


def at_the_loss(law: Law, draws: Draws, *, definition: str, caveats: tuple[str, ...]) -> Estimate:
    """Effective compute with R = L - E: only for a curve of the same text and tokenizer as the losses."""
    blank = _blank(law, COMPUTE, definition)
    baseline = draws.delta.baseline
    if baseline is None:
        return replace(blank, reason="needs the baseline CE itself (--ce-baseline), not delta CE alone")
    if baseline <= law.E:
        return replace(
            blank,
            reason=f"baseline CE {baseline:.4g} is at or below E = {law.E:.4g}, a loss that this curve says "
            "no compute can buy: the curve is not one of this text",
        )
    exponent = _exponent(law)
    chosen = _Definition(COMPUTE, lambda at: (baseline - at[0], exponent(at)), "FLOPs", None, f"E = {law.E:.4g}")
    common = (*_caveats(law, draws.delta), *caveats)
    return _estimate(law, chosen, draws, draws.parameters(law.covariance), blank, common)


def _definitions(params: float, tokens: float) -> tuple[_Definition, ...]:
    log_n, log_d = math.log(params), math.log(tokens)

    def size(at: np.ndarray) -> float:
        return math.exp(at[1] - at[3] * log_n)

    def data(at: np.ndarray) -> float:
        return math.exp(at[2] - at[4] * log_d)

    def frontier(at: np.ndarray) -> tuple[float, float]:
        return size(at) + data(at), at[3] * at[4] / (at[3] + at[4])

    return (
        _Definition(COMPUTE, frontier, "FLOPs", None, "the law's floor E"),
        _Definition(
            PARAMETERS,
            lambda at: (size(at), at[3]),
            "parameters",
            params,
            "the law's loss of endless parameters",
        ),
        _Definition(TOKENS, lambda at: (data(at), at[4]), "tokens", tokens, "the law's loss of endless tokens"),
    )


def _on_frontier(
    law: ComputeLaw,
    original: Original,
    draws: Draws,
    blank: Estimate,
    common: tuple[str, ...],
) -> Estimate:
    log_c = math.log(original.compute or math.nan)
    chosen = _Definition(
        COMPUTE, lambda at: (math.exp(at[1] - at[2] * log_c), at[2]), "FLOPs", None, "the law's floor E"
    )
    assumed = "the original is taken as compute-optimal: this law knows no other models"
    flags = [*common, assumed]
    if original.flops is None and law.flops != "6ND":
        flags.append(f"6ND stands in for {law.flops}")
    return _estimate(law, chosen, draws, draws.parameters(law.covariance), blank, tuple(flags))


def _estimate(
    law: Law,
    chosen: _Definition,
    draws: Draws,
    deviations: np.ndarray | None,
    blank: Estimate,
    common: tuple[str, ...],
) -> Estimate:
    reducible, _ = chosen.terms(law.theta)
    log_value, interval = place(chosen.terms, law.theta, draws, deviations)
    if not math.isfinite(log_value):
        return replace(
            blank,
            flags=common,
            reason=f"delta CE {draws.delta.value:.4g} puts the spliced loss at or below {chosen.floor}, "
            f"{reducible:.4g} nats/token under the original: no amount buys that on this curve",
        )
    own = law.optimal_flops(reducible) if chosen.own is None else chosen.own
    equivalent = own * math.exp(log_value)
    span = law.flops_range if chosen.own is None else law.params_range if chosen.quantity == PARAMETERS else None
    bound, range_flags = _range(own, equivalent, span, unit=chosen.unit)
    flags = [*common, *range_flags]
    if span is None and chosen.quantity != TOKENS:
        flags.append(f"the range of this law in {chosen.unit} is not known, so it is not checked")
    return replace(
        blank,
        fraction=math.exp(log_value),
        interval=interval,
        equivalent=equivalent,
        unit=chosen.unit,
        bound=bound,
        flags=tuple(flags),
    )


def _range(
    own: float, equivalent: float, span: tuple[float, float] | None, *, unit: str
) -> tuple[str | None, list[str]]:
    """What the curve's range allows to say, and a sentence for each end that lies outside of it."""
    if span is None:
        return None, []
    low, high = span
    flags = []
    if not low <= own <= high:
        side = "above" if own > high else "below"
        flags.append(
            f"the original is worth {own:.3g} {unit} on this curve, {side} its range "
            f"{low:.3g} to {high:.3g}: extrapolated"
        )
    if equivalent < low:
        bound = f"< {low / own:.3g}" if own >= low else None
        flags.append(f"the spliced model is worth {equivalent:.3g} {unit}, below the range ({low:.3g}): extrapolated")
        return bound, flags
    if equivalent > high and own <= high:
        flags.append(f"the spliced model is worth {equivalent:.3g} {unit}, above the range ({high:.3g}): extrapolated")
        return f"> {high / own:.3g}", flags
    return None, flags


def _exponent(law: Law):
    if isinstance(law, ParametricLaw):
        return lambda at: at[3] * at[4] / (at[3] + at[4])
    return lambda at: at[2]


def _count(law: ParametricLaw, original: Original) -> tuple[float, tuple[str, ...]]:
    """Parameters as the law counts them, and a flag where only the other count is known."""
    total = original.params or math.nan
    if law.counts == "total":
        return total, ()
    if original.params_non_embedding is not None:
        return original.params_non_embedding, ()
    return total, (f"{law.name} counts non-embedding parameters; the number given was taken as such",)


def _caveats(law: Law, delta: DeltaCE) -> tuple[str, ...]:
    found = [*delta.caveats]
    if law.superseded:
        found.append(f"superseded law: {law.superseded}")
    if law.covariance is None:
        found.append("no covariance of this law is published: its parameters are held fixed")
    elif law.E == 0:
        found.append("the fitted floor E ended at 0: the points do not determine it")
    return tuple(found)


def _blank(law: Law, quantity: str, definition: str) -> Estimate:
    return Estimate(
        quantity=quantity,
        definition=definition,
        curve=law.name,
        source=f"{law.source}; text: {law.text}",
        constants=law.constants,
    )
