"""The first sentences of a report: what the reconstructions lose, where most and least, and if that can be told."""

from __future__ import annotations

from collections.abc import Sequence

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.comparison.multiplicity import has_star
from sae_lm_eval.comparison.pairs import NONE_RIGHT
from sae_lm_eval.report.drop_tables import SETS_ALIKE, DropRow
from sae_lm_eval.report.fidelity_tables import Fidelity, beside_compute, shown_text
from sae_lm_eval.report.formatting import NA, alternatives, fixed_decimals, is_number, listing, percent, significant
from sae_lm_eval.report.provenance import requested_model
from sae_lm_eval.report.summary_table import Summary


def headline(comparison: Comparison, summary: Summary) -> list[str]:
    """A few sentences, of the reconstructions alone; of controls where there is nothing else."""
    model, level = requested_model(comparison.baseline), comparison.level
    names = summary.variants or summary.controls
    costs = sorted((row for row in summary.overall if row.variant in names), key=lambda row: row.drop)
    if not costs:
        first = f"No accuracy of {model} was measured both untouched and with {listing(names)} spliced in."
        return [first, *_all_losses(names[:1], summary.fidelity)]
    if costs[0].at_chance:
        return [*_at_chance(costs[0], model), *_all_losses(list(dict.fromkeys(names))[:2], summary.fidelity)]
    ends = costs if len(costs) == 1 else [costs[0], costs[-1]]
    if len(costs) == 1:
        sentences = [f"With {costs[0].variant} spliced in, {model} {_change(costs[0], level)}."]
    else:
        kind = "reconstructions" if summary.variants else "controls"
        sentences = [
            f"Of {len(costs)} {kind} in {model}, {ends[0].variant} costs least: it {_change(ends[0], level)}; "
            f"{ends[-1].variant} costs most: it {_change(ends[-1], level)}.",
            *_apart(comparison, ends[-1].variant, ends[0].variant),
        ]
    sentences += _extremes(summary, ends[-1].variant, level)
    sentences += _detectable(costs)
    return [*sentences, *_all_losses([row.variant for row in ends], summary.fidelity)]


def _at_chance(row: DropRow, model: str) -> list[str]:
    """Of a baseline that is at chance, or answers nothing right, there is nothing else to say."""
    nothing = "It has nothing to lose, so the drops say nothing about the dictionaries."
    if row.above_chance_reason == NONE_RIGHT:
        return [f"{model} answers none of these {row.n:,} questions correctly. {nothing}"]
    return [
        f"The baseline is at chance on these tasks: {model} answers {percent(row.baseline)}% of {row.n:,} questions "
        f"correctly, and guessing gives {percent(row.chance)}%. {nothing}"
    ]


def _change(row: DropRow, level: float) -> str:
    """`loses 3.2 percentage points of accuracy (95% interval 1.0 to 5.4; from 90.1% to 86.9%, n = 780)`."""
    sign, verb = (1, "loses") if row.drop >= 0 else (-1, "gains")
    bounds = ""
    if row.low is not None and row.high is not None:
        low, high = sorted((sign * row.low, sign * row.high))
        bounds = f"{level:.0%} interval {fixed_decimals(low)} to {fixed_decimals(high)}; "
    return (
        f"{verb} {fixed_decimals(sign * row.drop)} percentage points of accuracy ({bounds}"
        f"from {percent(row.baseline)}% to {percent(row.score)}%, n = {row.n:,})"
    )


def _apart(comparison: Comparison, worse: str, better: str) -> list[str]:
    """Whether the most and the least costly variant can be told apart, question by question."""
    between = comparison.between
    if between.empty:
        return []
    pair = between[(between["variant"] == worse) & (between["other"] == better)]
    if pair.empty:
        return []
    row = pair.iloc[0]
    clear = row["p_adjusted"] < 1 - comparison.level
    bounds = ""
    if is_number(row["low"]):
        adjusted = "" if clear or len(between) == 1 else ", not adjusted"
        ends = f"{fixed_decimals(row['low'])} to {fixed_decimals(row['high'])}"
        bounds = f" ({comparison.level:.0%} interval {ends}{adjusted})"
    differ = f"differ by {fixed_decimals(row['difference'])} points{bounds}"
    if clear:
        return [f"They {differ}, which is significant."]
    after = "The" if len(between) == 1 else f"After adjustment for {len(between)} comparisons the"
    return [f"{after} difference is not significant: they {differ}."]


def _extremes(summary: Summary, variant: str, level: float) -> list[str]:
    """Which category loses most in a variant, and which least, if they differ; those at chance have nothing to lose."""
    own = [row for row in summary.rows if row.variant == variant and not row.at_chance]
    own.sort(key=lambda row: row.drop)
    if summary.by == "overall":
        return _of_tasks(summary, variant, level)
    sentences = []
    if len(own) > 1 and round(own[-1].drop, 1) > max(0, round(own[0].drop, 1)):
        most, least = (f"{row.alias} ({fixed_decimals(row.drop)}{_bounds(row)})" for row in (own[-1], own[0]))
        alone = len(summary.variants or summary.controls) == 1
        apart = f"In {variant}, {most} loses most and {least} least."
        sentences.append(f"It loses most in {most} and least in {least}." if alone else apart)
    floor = list(dict.fromkeys(row.alias for row in summary.rows if row.at_chance))
    if floor and own:
        chance = all(row.above_chance_reason != NONE_RIGHT for row in summary.rows if row.at_chance)
        sentences.append(f"{'At chance' if chance else 'At the floor'}, so with nothing to lose: {listing(floor)}.")
    return sentences


def _of_tasks(summary: Summary, variant: str, level: float) -> list[str]:
    """Where nothing is shown but all tasks together: how many lose significantly, and which of them most.

    Tasks whose baseline has nothing to lose are left out, and counted.
    """
    every = [row for row in summary.tasks if row.variant == variant]
    own = [row for row in every if not row.at_chance]
    if len(own) < 2:
        return []
    lost = [row for row in own if row.drop > 0 and row.p_adjusted is not None and has_star(row.p_adjusted, level)]
    said = (
        f"In {variant}, {len(lost) or 'none'} of {len(own)} tasks {'lose' if len(lost) > 1 else 'loses'} significantly"
    )
    most = max(lost, key=lambda row: row.drop, default=None)
    said += "" if most is None else f", most of all {most.alias} ({fixed_decimals(most.drop)}{_bounds(most)})"
    floor = [row for row in every if row.at_chance]
    why = alternatives(row.above_chance_reason for row in floor)
    uncounted = f"Not counted: {len(floor)} of {len(every)} tasks, with nothing to lose ({why})."
    return [f"{said}.", *([uncounted] if floor else [])]


def _bounds(row: DropRow) -> str:
    return "" if row.low is None else f", {fixed_decimals(row.low)} to {fixed_decimals(row.high)}"


def _detectable(costs: Sequence[DropRow]) -> list[str]:
    values = sorted(row.detectable for row in costs if row.detectable is not None)
    if not values and all(row.undetectable_reason == SETS_ALIKE for row in costs):
        return [f"The smallest drop that these questions can detect is unknown: {SETS_ALIKE}."]
    if not values:
        return ["These questions are too few to detect any drop with 80% power."]
    ends = (
        fixed_decimals(values[0])
        if fixed_decimals(values[0]) == fixed_decimals(values[-1])
        else f"{fixed_decimals(values[0])} to {fixed_decimals(values[-1])}"
    )
    return [f"With these questions, a drop of {ends} points is detected with 80% power."]


def _all_losses(names: Sequence[str], fidelity: Fidelity) -> list[str]:
    return [f"{text}." for name in names if (text := _losses(name, fidelity))]


def _losses(name: str, fidelity: Fidelity) -> str:
    """Delta CE, KL and effective compute of a variant, on the first text where they were measured."""
    task, by_metric = next(
        ((task, by_metric) for (variant, task), by_metric in fidelity.items() if variant == name), ("", {})
    )
    value = {metric: measurement.value for metric, measurement in by_metric.items() if measurement.value is not None}
    parts = []
    if "ce_delta" in value:
        both = "ce_baseline" in value and "ce_spliced" in value
        ends = [significant(value.get(metric), 4) for metric in ("ce_baseline", "ce_spliced")]
        parts.append(
            f"delta CE {fixed_decimals(value['ce_delta'], 3)} nats/token" + (f" (from {' to '.join(ends)})" * both)
        )
    if "kl" in value:
        parts.append(f"KL {fixed_decimals(value['kl'], 3)} nats/token")
    if "effective_compute" in value:
        measurement = by_metric["effective_compute"]
        has_bounds = measurement.low is not None and measurement.high is not None
        bounds = (
            f" (95% interval {significant(measurement.low)} to {significant(measurement.high)})" if has_bounds else ""
        )
        within, between, calibrated = beside_compute(measurement.record)
        beside = f" (within the law {within}; between laws {between}; calibrated: {calibrated})" if within != NA else ""
        parts.append(f"effective compute {significant(measurement.value)}{bounds}{beside}")
    return f"{name}: {', '.join(parts)} on {shown_text(task)}" if parts else ""
