"""The definitions of effective compute that live on measured points: interpolation, and checkpoints."""

import math
from dataclasses import replace

import numpy as np

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling.delta import DeltaCE
from sae_lm_eval.scaling.estimate import Draws, Estimate
from sae_lm_eval.scaling.family import Family, MonotoneCurve, monotone_curve, published_families
from sae_lm_eval.scaling.law_estimates import COMPUTE, FAMILY_FIT, at_the_loss
from sae_lm_eval.scaling.laws import ComputeLaw
from sae_lm_eval.scaling.loss_units import in_units_of
from sae_lm_eval.scaling.original_model import Original, find_preset

INTERPOLATION = "family interpolation"
CHECKPOINTS = "checkpoints isotonic"
PUBLISHED = "published family"
# Between the last two members PCHIP follows its three-point end slope (3 y_0 - 4 y_1 + y_2)/2h, which
# scatters sqrt(26)/2 where the straight line between two points scatters sqrt(2).
END_SLOPE = math.sqrt(13) / 2
CURVES = 1000  # resampled curves of checkpoints; each costs a regression
SAME_TEXT_TOLERANCE = 0.01  # relative; more means another text, tokenizer or context length
SAME_POINT_TOLERANCE = 0.001  # relative; dtypes and batches move the loss of one model on one text by less


def family_estimates(family: Family, original: Original, draws: Draws) -> list[Estimate]:
    """Effective compute by the family's fitted law and by interpolation between its members."""
    flags = family.flags
    mismatch = _mismatch(family, original, draws.delta)
    if mismatch is not None:
        return [replace(_blank(family, name), flags=flags, reason=mismatch) for name in (FAMILY_FIT, INTERPOLATION)]
    if family.fit is None:
        fitted = replace(_blank(family, FAMILY_FIT), reason="a fit of E + K C^-gamma needs four models or more")
    else:
        fitted = at_the_loss(family.fit, draws, definition=FAMILY_FIT, caveats=flags)
    return [fitted, _interpolated(family, draws, flags)]


def published_estimates(original: Original, draws: Draws, text: str | None) -> list[Estimate]:
    """Effective compute by each published family that the original belongs to, those of its own tokenizer first.

    The rise of the loss starts at the family's loss of the original, so that only the difference of the two losses
    enters, as it does within a law.
    """
    estimates = []
    for family in sorted(published_families(), key=lambda family: family.tokenizer != original.tokenizer):
        members = [_preset_name(model) for model in family.models]
        if original.name not in members:
            continue
        scaled, units = in_units_of(family, original, draws)
        own = float(family.loss[members.index(original.name)])
        delta = replace(scaled.delta, baseline=own, spliced=own + scaled.delta.value)
        named = "a text that is not named" if text is None else text
        whence = f"the rise is measured on {named}, and the family's losses on {family.text}: only the rise enters"
        estimate = _interpolated(family, replace(scaled, delta=delta), (*family.flags, *units, whence))
        ends = own in (family.loss.min(), family.loss.max())  # beyond which the curve says no more than the sign
        estimates.append(replace(estimate, definition=PUBLISHED, bound=None if ends else estimate.bound))
    return estimates


def checkpoint_estimate(checkpoints: Family, draws: Draws) -> Estimate:
    """The share of its own training after which the original was as good as the spliced model is.

    Isotonic regression over log compute; the original is the curve's last point, so Delta = 0 gives 1. Its compute is
    the denominator of the point and of every draw, also where its loss is pooled with earlier ones.
    At a checkpoint the learning rate is not annealed, and more of the peak is behind it than in a run that ends there:
    the first raises its loss against that run's, the second lowers it.
    """
    curve = monotone_curve(checkpoints.compute, checkpoints.loss, end="own")
    flags = (*checkpoints.flags, "checkpoints are not runs that end there: their learning rate was not annealed")
    estimate = _on_curve(
        checkpoints, curve, curve.best, draws.delta, replace(_blank(checkpoints, CHECKPOINTS), flags=flags)
    )
    if estimate.fraction is None:
        return estimate
    if checkpoints.scatter is None:
        logs = curve.log_compute_at(curve.best + draws.deltas) - curve.log_compute[-1]
        return _with_interval(estimate, logs, draws, scatter=False)
    return _with_interval(
        estimate, _resampled_checkpoints(checkpoints, checkpoints.scatter, draws), draws, scatter=True
    )


def _interpolated(family: Family, draws: Draws, flags: tuple[str, ...]) -> Estimate:
    delta = draws.delta
    blank = replace(_blank(family, INTERPOLATION), flags=flags)
    if delta.baseline is None:
        return replace(blank, reason="needs the baseline CE itself (--ce-baseline), not delta CE alone")
    curve = monotone_curve(family.compute, family.loss)
    if rises := int((np.diff(family.loss) > 0).sum()):
        pooled = f"the losses rise with compute at {rises} of {len(family.loss) - 1} steps, which are pooled"
        blank = replace(blank, flags=(*blank.flags, pooled))
    baseline = _at_the_edge(curve, delta.baseline)
    log_own = float(curve.log_compute_at(baseline))
    if not math.isfinite(log_own):
        side, edge = ("below the best", curve.best) if log_own > 0 else ("above the worst", curve.worst)
        return replace(
            blank,
            reason=f"baseline CE {delta.baseline:.4g} is {side} loss of the family, {edge:.4g}: "
            "the original has no point of its own on this curve",
        )
    estimate = _on_curve(family, curve, baseline, delta, blank)
    if estimate.fraction is None:
        return estimate
    logs = curve.log_compute_at(baseline + draws.deltas) - log_own
    if family.fit is None or family.scatter is None:
        return _with_interval(estimate, logs, draws, scatter=False)
    scale, dof = family.scatter
    ends = (log_own, log_own + math.log(estimate.fraction))
    error = _scatter_error(family, family.fit, scale, ends)
    if min(ends) > curve.log_compute[-2]:
        error *= END_SLOPE
        ends_flag = "both losses lie between the family's last two members, where a 95% interval may cover 87%"
        estimate = replace(estimate, flags=(*estimate.flags, ends_flag))
    return _with_interval(
        estimate,
        logs + error * draws.rng.standard_normal(len(logs)) * draws.student(dof),
        draws,
        scatter=True,
    )


def _at_the_edge(curve: MonotoneCurve, baseline: float) -> float:
    """The curve's own end where the baseline is that member, measured anew."""
    for edge in (curve.best, curve.worst):
        if abs(baseline - edge) <= SAME_POINT_TOLERANCE * edge:
            return min(max(baseline, curve.best), curve.worst)
    return baseline


def _with_interval(estimate: Estimate, logs: np.ndarray, draws: Draws, *, scatter: bool) -> Estimate:
    covers = ("documents",) if draws.delta.uncertain else ()
    flags = estimate.flags
    if scatter:
        covers = (*covers, "scatter of the points")
    else:
        flags = (*flags, "too few points to tell their scatter: the interval leaves it out")
    return replace(estimate, interval=draws.interval(logs, covers=covers), flags=flags)


def _on_curve(family: Family, curve: MonotoneCurve, baseline: float, delta: DeltaCE, blank: Estimate) -> Estimate:
    blank = replace(blank, flags=(*delta.caveats, *blank.flags))
    log_own = float(curve.log_compute_at(baseline))
    log_spliced = float(curve.log_compute_at(baseline + delta.value))
    if math.isfinite(log_spliced) and delta.unlearned is not None:
        return replace(blank, unit=family.unit, reason=delta.unlearned)
    if not math.isfinite(log_spliced):
        return _outside(family, curve, log_own, baseline + delta.value, blank)
    return replace(
        blank,
        fraction=math.exp(log_spliced - log_own),
        equivalent=math.exp(log_spliced),
        unit=family.unit,
    )


def _outside(family: Family, curve: MonotoneCurve, log_own: float, spliced: float, blank: Estimate) -> Estimate:
    """Outside the measured range only a bound is known; the fraction itself stays undefined."""
    below = spliced > curve.worst
    log_edge = float(curve.log_compute[0] if below else curve.log_compute[-1])
    edge_loss = curve.worst if below else curve.best
    word, sign = ("above the worst", "<") if below else ("below the best", ">")
    return replace(
        blank,
        bound=f"{sign} {math.exp(log_edge - log_own):.3g}",
        unit=family.unit,
        reason=f"spliced loss {spliced:.4g} is {word} measured loss, {edge_loss:.4g}: "
        f"{sign} {math.exp(log_edge):.3g} {family.unit} is all that the curve says",
    )


def _scatter_error(family: Family, law: ComputeLaw, scale: float, logs: tuple[float, float]) -> float:
    """Standard error of log C(L') - log C(L) from independent scatter of the members' log losses.

    An interpolated loss errs as its two neighbours do; an error of log L moves log C by the inverse slope of
    the fitted law, which is smoother than that of the interpolated curve.
    """
    at = np.log(family.compute)
    weights = np.array([[np.interp(log_c, at, unit) for unit in np.eye(len(at))] for log_c in logs])
    reducible = law.K * np.exp(-law.gamma * np.array(logs))
    slopes = law.gamma * reducible / (law.E + reducible)
    pull = weights / slopes[:, None]
    return scale * float(np.linalg.norm(pull[1] - pull[0]))


def _resampled_checkpoints(run: Family, scatter: tuple[float, float], draws: Draws) -> np.ndarray:
    """Draws of log C(best + Delta) - log C with scatter added to each checkpoint's loss; C is the original's compute.

    Resampling, because pooling reacts to scatter in steps: derivatives covered 87% where this covers 96%.
    """
    scale, dof = scatter
    deltas = draws.deltas[:CURVES]
    factors = scale * draws.student(dof)[: len(deltas)]
    logs = np.empty(len(deltas))
    for i, (delta, factor) in enumerate(zip(deltas, factors, strict=True)):
        noise = np.exp(factor * draws.rng.standard_normal(len(run.loss)))
        try:
            curve = monotone_curve(run.compute, run.loss * noise, end="own")
        except UserError:  # these losses do not fall at all: a draw that bounds nothing
            logs[i] = -np.inf if delta > 0 else np.inf
            continue
        logs[i] = curve.log_compute_at(curve.best + delta) - curve.log_compute[-1]
    return logs


def same_loss(loss: float, other: float) -> bool:
    """Whether two losses can be of one model on one text at one context length."""
    return abs(loss - other) <= SAME_TEXT_TOLERANCE * loss


def _mismatch(family: Family, original: Original, delta: DeltaCE) -> str | None:
    """Why the family's losses cannot be on the text at hand: it holds the original at another loss."""
    members = [_preset_name(model) for model in family.models]
    if original.name not in members or delta.baseline is None:
        return None
    own = float(family.loss[members.index(original.name)])
    if same_loss(own, delta.baseline):
        return None
    return (
        f"baseline CE is {delta.baseline:.4g}, but the family has {original.name} at {own:.4g}: not the same "
        "text, tokenizer or context length"
    )


def _preset_name(model: str) -> str:
    preset = find_preset(model)
    return model if preset is None else preset.name


def _blank(family: Family, definition: str) -> Estimate:
    return Estimate(
        quantity=COMPUTE,
        definition=definition,
        curve=family.name,
        source=f"{family.source}; text: {family.text}",
    )
