"""The definitions of effective compute that live on a scaling law."""

import math
from dataclasses import dataclass, replace

import numpy as np

from sae_lm_eval.scaling.delta import DeltaCE
from sae_lm_eval.scaling.estimate import Draws, Estimate, Terms, log_fraction, place_on_curve
from sae_lm_eval.scaling.laws import ComputeLaw, Law, ParametricLaw
from sae_lm_eval.scaling.original_model import Original

LAW_RELATIVE = "within the law"
AT_THE_LOSS = "within the law, at the measured loss"
FAMILY_FIT = "family fit"
COMPUTE, PARAMETERS, TOKENS = "effective compute", "effective parameters", "effective tokens"
# Further than this beyond what a law was fitted to, nothing is quoted: a factor of 100 in FLOPs or parameters.
DECADES = 2


@dataclass(frozen=True)
class _Definition:
    quantity: str
    terms: Terms
    unit: str
    own: float | None  # the original's own amount of the resource; None when it follows from the curve
    floor: str
    flops: float = 1.0  # training FLOPs for each unit of the resource, the others of the original's fixed


def law_relative(law: Law, original: Original, draws: Draws) -> list[Estimate]:
    """Effective compute, parameters and tokens with R from the law at the original's own size and data."""
    lacks = original.lacks
    alone = original.flops is not None and (isinstance(law, ComputeLaw) or original.params is None)
    blank = [_blank(law, quantity, LAW_RELATIVE) for quantity in (COMPUTE, PARAMETERS, TOKENS)]
    if lacks is not None and not alone:
        return [replace(estimate, reason=lacks) for estimate in blank]
    common = (*_caveats(law, draws.delta), *original.caveats)
    if isinstance(law, ComputeLaw):
        return [_on_frontier(law, original, draws, blank[0], common)] + [
            replace(estimate, reason="this law speaks of compute alone, not of parameters and tokens")
            for estimate in blank[1:]
        ]
    if lacks is not None:
        frontier = _on_frontier(law, original, draws, blank[0], common)
        return [frontier, *(replace(estimate, reason=lacks) for estimate in blank[1:])]
    if original.off_6nd is not None:
        common = (*common, original.off_6nd)
    params, counting = _count(law, original)
    common = (*common, *counting)
    tokens = original.tokens or math.nan
    deviations = draws.parameters(law.covariance)
    compute, *others = (
        _estimate(law, definition, draws, deviations, estimate, common)
        for definition, estimate in zip(_definitions(params, tokens), blank, strict=True)
    )
    return [_as_trained(law, original, compute), *others]


def _as_trained(law: ParametricLaw, original: Original, compute: Estimate) -> Estimate:
    """With parameters and tokens of the model of that loss whose two terms of the law stand as the original's do.

    A fraction f of 6ND along N f^(beta/(alpha+beta)), D f^(alpha/(alpha+beta)) multiplies both terms by f^-gamma.
    """
    if compute.fraction is None or original.params is None or original.tokens is None:
        return compute
    whole = law.alpha + law.beta
    params = original.params * compute.fraction ** (law.beta / whole)
    return replace(compute, same_training=(params, original.tokens * compute.fraction ** (law.alpha / whole)))


def log_relative(law: Law, original: Original, rise: float, quantity: str) -> float:
    """log of the fraction that a law gives to a rise of the loss (nats/token), no matter what its range is.

    A law of compute alone takes the original as compute-optimal.
    """
    return float(log_fraction(rise, *_terms(law, original, quantity)))


def rise_for(law: Law, original: Original, fraction: float, quantity: str) -> float:
    """The rise of the loss (nats/token) that leaves a fraction: Delta = R (f^-s - 1), the inverse of `log_relative`."""
    reducible, exponent = _terms(law, original, quantity)
    return reducible * math.expm1(-exponent * math.log(fraction))


def _terms(law: Law, original: Original, quantity: str) -> tuple[float, float]:
    if isinstance(law, ComputeLaw) or original.params is None or original.tokens is None:
        return _frontier_terms(law, math.log(original.compute or math.nan))(law.theta)
    chosen = _definitions(_count(law, original)[0], original.tokens)
    return next(definition for definition in chosen if definition.quantity == quantity).terms(law.theta)


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
            flops=6 * tokens,
        ),
        _Definition(
            TOKENS,
            lambda at: (data(at), at[4]),
            "tokens",
            tokens,
            "the law's loss of endless tokens",
            flops=6 * params,
        ),
    )


def _on_frontier(
    law: Law,
    original: Original,
    draws: Draws,
    blank: Estimate,
    common: tuple[str, ...],
) -> Estimate:
    log_c = math.log(original.compute or math.nan)
    chosen = _Definition(COMPUTE, _frontier_terms(law, log_c), "FLOPs", None, "the law's floor E")
    why = "this law knows no other models" if isinstance(law, ComputeLaw) else "its FLOPs are all that is known of it"
    assumed = f"the original is taken as compute-optimal: {why}"
    flags = [*common, assumed]
    if original.flops is None and law.flops != "6ND":
        flags.append(f"6ND stands in for {law.flops}")
    return _estimate(law, chosen, draws, draws.parameters(law.covariance), blank, tuple(flags))


def _frontier_terms(law: Law, log_c: float) -> Terms:
    """R and s of a compute-optimal model of C FLOPs: K C^-gamma and gamma, in the law's own parameters."""
    if isinstance(law, ComputeLaw):
        return lambda at: (math.exp(at[1] - at[2] * log_c), at[2])

    def terms(at: np.ndarray) -> tuple[float, float]:
        law_at = replace(law, A=math.exp(at[1]), B=math.exp(at[2]), alpha=float(at[3]), beta=float(at[4]))
        return law_at.K * math.exp(-law_at.gamma * log_c), law_at.gamma

    return terms


def _estimate(
    law: Law,
    chosen: _Definition,
    draws: Draws,
    deviations: np.ndarray | None,
    blank: Estimate,
    common: tuple[str, ...],
) -> Estimate:
    reducible, _ = chosen.terms(law.theta)
    log_value, interval = place_on_curve(chosen.terms, law.theta, draws, deviations)
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
    if (outside := _outside(law, chosen, draws.delta, own, equivalent, span)) is not None:
        bound, reason = outside
        return replace(blank, flags=common, unit=chosen.unit, bound=bound, reason=reason)
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


def _outside(
    law: Law,
    chosen: _Definition,
    delta: DeltaCE,
    own: float,
    equivalent: float,
    span: tuple[float, float] | None,
) -> tuple[str | None, str] | None:
    """A bound and the reason why no fraction is told; None where the law may be asked.

    A law may not be asked more than `DECADES` beyond the range that it was fitted to, in FLOPs or in the resource
    itself; where that is not known, more than `DECADES` from the original. Nor is there a fraction of the compute for a
    loss that is above that of knowing nothing, the logarithm of the vocabulary's size.
    """
    ranges = [(1.0, span, chosen.unit)] if span is not None else []
    if law.flops_range is not None and chosen.own is not None:
        ranges.append((chosen.flops, law.flops_range, "FLOPs"))
    if not ranges:
        ranges.append((1.0, (own, own), chosen.unit))
    bound = _bound(own, equivalent, ranges)
    if delta.unlearned is not None:
        return bound, delta.unlearned
    for each, (low, high), unit in ranges:
        for who, amount in (("the original", own * each), ("the spliced model", equivalent * each)):
            if not 0 < amount < math.inf:
                return bound, f"outside the law: {who} would be at {amount:.3g} {unit}, which is no amount"
            beyond = max(math.log10(low / amount), math.log10(amount / high))
            if beyond > DECADES:
                what = f"{low:.3g} to {high:.3g} {unit}" if low < high else f"the original's own {low:.3g} {unit}"
                side = "below" if amount < low else "above"
                return bound, f"outside the law: {who} would be {beyond:.1f} decades {side} {what}"
    return None


def _bound(own: float, equivalent: float, ranges: list[tuple[float, tuple[float, float], str]]) -> str:
    """What the ends of the ranges allow to say of the fraction; where they allow nothing, the side of 1 it lies on."""
    less = equivalent < own
    ends = []
    for each, (low, high), _ in ranges:
        if low == high:
            low, high = low / 10**DECADES, high * 10**DECADES
        if less and equivalent * each < low <= own * each:
            ends.append(low / (own * each))
        if not less and own * each <= high < equivalent * each:
            ends.append(high / (own * each))
    return f"< {min(ends, default=1.0):.3g}" if less else f"> {max(ends, default=1.0):.3g}"


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
    flags = [*delta.caveats]
    if law.superseded:
        flags.append(f"superseded law: {law.superseded}")
    if law.covariance is None:
        flags.append(f"{law.no_covariance}: its parameters are held fixed")
    elif law.E == 0:
        flags.append("the fitted floor E ended at 0: the points do not determine it")
    return tuple(flags)


def _blank(law: Law, quantity: str, definition: str) -> Estimate:
    return Estimate(
        quantity=quantity,
        definition=definition,
        curve=law.name,
        source=f"{law.source}; text: {law.text}",
        constants=law.constants,
    )
