"""The fidelity metrics of every variant: as records, as a tidy frame and as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import pandas as pd

from sae_lm_eval.report.formatting import (
    MINUS,
    NA,
    Cell,
    ReportTable,
    TableColumn,
    fixed_decimals,
    is_number,
    listing,
    number_cell,
    significant,
    text_cell,
)
from sae_lm_eval.report.provenance import splice_of
from sae_lm_eval.results.fidelity_names import DICTIONARY_METRICS, NO_DICTIONARY, WITHOUT_DICTIONARY
from sae_lm_eval.results.results import Results
from sae_lm_eval.scaling.of_results import quoted

# metric: (heading, unit)
METRICS = {
    "ce_baseline": ("baseline CE", "nats/token"),
    "ce_spliced": ("spliced CE", "nats/token"),
    "ce_delta": ("delta CE", "nats/token"),
    "ce_zero": ("zero-ablation CE", "nats/token"),
    "ce_mean": ("mean-ablation CE", "nats/token"),
    "loss_recovered_zero": ("loss recovered (zero ablation)", "fraction"),
    "loss_recovered_mean": ("loss recovered (mean ablation)", "fraction"),
    "kl": ("KL", "nats/token"),
    "kl_reverse": ("reverse KL", "nats/token"),
    "top1_agreement": ("top-1 agreement", "fraction"),
    "bits_per_byte_baseline": ("baseline bits/byte", "bits/byte"),
    "bits_per_byte_spliced": ("spliced bits/byte", "bits/byte"),
    "l0": ("L0", "latents/token"),
    "fvu": ("FVU", "fraction"),
    "explained_variance": ("explained variance", "fraction"),
    "cosine": ("cosine", "fraction"),
    "norm_ratio": ("norm ratio", "fraction"),
    "fraction_fired": ("fraction fired", "fraction"),
    "effective_compute": ("effective compute", "fraction"),
}
# Metrics that have a noise floor, by its name in the record of the row baseline_again.
FLOORS = {"kl": "kl", "kl_reverse": "kl", "ce_delta": "ce_delta", "kl_at_answers": "kl"}
NOISE = "\N{DEGREE SIGN}"
BY_SITE = "there are several dictionaries: each has its own, by its site"
# A loss recovered says nothing without the losses that it was made from.
NEEDED = {
    "loss_recovered_zero": ("ce_baseline", "ce_spliced", "ce_zero"),
    "loss_recovered_mean": ("ce_baseline", "ce_spliced", "ce_mean"),
}
LOSS = f"(ablation CE {MINUS} spliced CE) / (ablation CE {MINUS} baseline CE)"
# What the captions say of metrics; of several with one meaning it is said once.
CE, LOST = "mean cross-entropy in nats/token", f"loss recovered from the named ablation, {LOSS}"
MEANINGS = {
    **dict.fromkeys(tuple(METRICS)[:5], CE),
    "loss_recovered_zero": LOST,
    "loss_recovered_mean": LOST,
    "kl": "KL from the baseline to the spliced model in nats/token",
    "kl_reverse": "reverse KL in nats/token",
    "top1_agreement": "share of positions with the same likeliest token",
    "bits_per_byte_baseline": "bits/byte of both models",
    "bits_per_byte_spliced": "bits/byte of both models",
    "l0": "active latents per token (L0)",
    "fvu": "fraction of variance unexplained (FVU)",
    "explained_variance": "explained variance",
    "cosine": "cosine of reconstruction and activation",
    "norm_ratio": "ratio of the norms of reconstruction and activation",
    "fraction_fired": "share of the dictionary that fired at all",
}
# name, title, metrics and first words of the caption of each table
TABLES = (
    ("losses", "Loss", tuple(METRICS)[:7], "On each text"),
    ("outputs", "Output distribution", tuple(METRICS)[7:12], "How the next-token distribution changes"),
    ("activations", "Activations", tuple(METRICS)[12:18], "The reconstruction at the site"),
)


WITHIN = "within the noise floor"
BESIDE = ("within the law", "between laws", "calibrated")  # what stands beside effective compute


@dataclass(frozen=True)
class MetricValue:
    """A metric of a variant on a text; `value` is None for the `reason`."""

    variant: str
    task: str
    metric: str
    value: float | None
    stderr: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    law: str | None = None
    flags: str = ""
    reason: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)  # what effective compute was recorded or converted with

    @property
    def mark(self) -> str:
        """Where the value is within the noise floor."""
        return NOISE if self.flags.startswith(WITHIN) else ""


MOST_DECIMALS = 6
MOST_STDERRS = 3  # that a number may be from 0 to be shown as 0, where its error is one of rounding
GROUP = "sae_fidelity_"  # how the names of these tasks begin; tables do without it

# By (variant, task): the metrics by name.
Fidelity = dict[tuple[str, str], dict[str, MetricValue]]


def fidelity_of(variants: Sequence[Results]) -> Fidelity:
    floor = recorded_noise_floor(variants)
    return {
        (results.name, task): {
            measurement.metric: marked(measurement, floor) for measurement in _measured(results, task)
        }
        for results in variants
        if not results.provenance.get("noise_floor")
        for task in results.fidelity_tasks
    }


def recorded_noise_floor(variants: Sequence[Results]) -> dict[str, Any]:
    """What the row baseline_again recorded; empty without one."""
    return next((floor for results in variants if (floor := results.provenance.get("noise_floor"))), {})


def marked(measurement: MetricValue, floor: Mapping[str, Any]) -> MetricValue:
    """With a flag where the value is no greater than what the baseline's own numbers move by."""
    least = _number(floor.get(FLOORS.get(measurement.metric, "")))
    if least is None or measurement.value is None or abs(measurement.value) > least:
        return measurement
    return replace(measurement, flags=f"{WITHIN}, {significant(least)}")


def tidy(fidelity: Fidelity) -> pd.DataFrame:
    """A row for each (variant, task, metric)."""
    rows = [asdict(measurement) for by_metric in fidelity.values() for measurement in by_metric.values()]
    return pd.DataFrame(rows, columns=[column.name for column in fields(MetricValue) if column.name != "record"])


def _measured(results: Results, task: str) -> Iterator[MetricValue]:
    scores, mode = results.scores[task], splice_of(results)
    sites = sites_of(scores)
    for metric, (_, unit) in METRICS.items():
        if metric in DICTIONARY_METRICS and mode in WITHOUT_DICTIONARY:
            yield MetricValue(results.name, task, metric, None, None, unit, reason=NO_DICTIONARY.format(mode))
            continue
        if metric in DICTIONARY_METRICS and sites:
            yield MetricValue(results.name, task, metric, None, None, unit, reason=BY_SITE)
            for site in sites:
                name = f"{metric}/{site}"
                value, stderr = (_number(scores.get(f"{name}{part},none")) for part in ("", "_stderr"))
                yield MetricValue(results.name, task, name, value, stderr, unit)
            continue
        value, stderr = (_number(scores.get(f"{metric}{part},none")) for part in ("", "_stderr"))
        measurement = MetricValue(results.name, task, metric, value, stderr, unit)
        if metric == "effective_compute":
            measurement = _effective_compute(measurement, results)
        lacking = [METRICS[part][0] for part in NEEDED.get(metric, ()) if not is_number(scores.get(f"{part},none"))]
        if measurement.value is not None and lacking:
            measurement = replace(
                measurement, value=None, stderr=None, reason=f"the results lack the {' and the '.join(lacking)}"
            )
        if measurement.value is None and not measurement.reason:
            measurement = replace(measurement, reason="not in the results")
        yield measurement


def sites_of(scores: Mapping[str, Any]) -> list[str]:
    """The sites of several dictionaries, in the order of the results; none where there is but one."""
    return [
        key.removeprefix("l0/").removesuffix(",none")
        for key in scores
        if key.startswith("l0/") and "_stderr" not in key
    ]


def parts_of(by_metric: Mapping[str, MetricValue], metric: str) -> dict[str, MetricValue]:
    """A metric of each of several dictionaries, by its site."""
    return {
        name.partition("/")[2]: measurement for name, measurement in by_metric.items() if name.startswith(f"{metric}/")
    }


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _effective_compute(measurement: MetricValue, results: Results) -> MetricValue:
    """As `effective-compute` converts the results, or where it cannot, as the run recorded it."""
    record = quoted(results, measurement.task)
    is_recorded = bool((results.provenance.get("effective_compute") or {}).get(measurement.task))
    if record.get("fraction") is None and not record.get("bound") and measurement.value is not None and not is_recorded:
        record = {}  # the scores have a fraction that nothing tells of
    flags = record.get("flags") or []
    flag_text = "; ".join(map(str, [flags] if isinstance(flags, str) else flags))
    value = _number(record.get("fraction", measurement.value))
    why = record.get("reason") or flag_text or "the run converted no loss"
    if value is None and record.get("bound"):
        why = f"{record['bound']}: {why}"
    return replace(
        measurement,
        value=value,
        low=_number(record.get("low")),
        high=_number(record.get("high")),
        law=record.get("law"),
        flags=flag_text,
        reason=None if value is not None else why,
        record=record,
    )


def fidelity_tables(fidelity: Fidelity) -> list[ReportTable]:
    """Losses, outputs, activations and effective compute; a column that is undefined throughout is left out."""
    tables = [_table(fidelity, *outline) for outline in TABLES]
    return [table for table in (*tables, _compute_table(fidelity)) if table.rows]


def _table(fidelity: Fidelity, name: str, title: str, metrics: Sequence[str], opening: str) -> ReportTable:
    shown = [metric for metric in metrics if any(_defined(by_metric, metric) for by_metric in fidelity.values())]
    lacking = {
        (METRICS[m][0], by_metric[m].reason)
        for by_metric in fidelity.values()
        for m in shown
        if m in NEEDED and by_metric[m].reason
    }
    notes = "".join(f" No {heading} is shown where {reason}." for heading, reason in sorted(lacking))
    rows: list[tuple[Cell, ...]] = []
    several = any(parts_of(by_metric, metric) for by_metric in fidelity.values() for metric in shown)
    for key, by_metric in fidelity.items():
        sites = list(parts_of(by_metric, shown[0])) if shown else []
        for site in sites or [None]:
            measurements = (by_metric[metric if site is None else f"{metric}/{site}"] for metric in shown)
            place = [text_cell(site or "")] if several else []
            rows.append((*_names(key), *place, *map(value_cell, measurements)))
    left = ("variant", "text", *(["site"] if several else []))
    columns = (*(TableColumn(head, "left") for head in left), *(TableColumn(METRICS[metric][0]) for metric in shown))
    caption = _caption(fidelity, shown, opening) + notes
    return ReportTable(f"fidelity-{name}", title, caption, columns, tuple(rows) if shown else ())


def _caption(fidelity: Fidelity, shown: Sequence[str], opening: str) -> str:
    meanings = list(dict.fromkeys(MEANINGS[metric] for metric in shown))
    measurements = (
        measurement
        for by_metric in fidelity.values()
        for metric in shown
        for measurement in (by_metric[metric], *parts_of(by_metric, metric).values())
    )
    has_errors = any(measurement.value is not None and measurement.stderr for measurement in measurements)
    errors = " ±: standard error." if has_errors else ""
    return f"{opening}: {listing(meanings)}.{errors}" if meanings else ""


def _defined(by_metric: Mapping[str, MetricValue], metric: str) -> bool:
    return any(
        measurement.value is not None for measurement in (by_metric[metric], *parts_of(by_metric, metric).values())
    )


def _names(key: tuple[str, str]) -> tuple[Cell, Cell]:
    variant, task = key
    return text_cell(variant), text_cell(task.removeprefix(GROUP))


def shown_text(task: str | None) -> str:
    """A task of fidelity as a report names its text."""
    return (task or "").removeprefix(GROUP)


def value_cell(measurement: MetricValue) -> Cell:
    """With its standard error to two significant digits, and as many decimals itself."""
    if measurement.value is None or not measurement.stderr:
        return number_cell(
            measurement.value,
            f"{significant(measurement.value, 4) if measurement.value != 0 else '0'}{measurement.mark}",
        )
    digits = min(max(1 - math.floor(math.log10(measurement.stderr)), 0), MOST_DECIMALS)
    if round(measurement.stderr, digits) == 0:  # an error of rounding
        is_zero = abs(measurement.value) < MOST_STDERRS * measurement.stderr
        rounded = round(measurement.value, digits) or measurement.value
        return number_cell(measurement.value, f"{'0' if is_zero else significant(rounded, 4)}{measurement.mark}")
    return number_cell(
        measurement.value,
        f"{fixed_decimals(measurement.value, digits)} ± {fixed_decimals(measurement.stderr, digits)}{measurement.mark}",
    )


def beside_compute(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of a record of effective compute: the fraction within the law, the spread of the laws and the calibration.

    Where a fraction is not calibrated, the reason.
    """
    spread = record.get("law_spread")
    between = f"{significant(spread[0])} to {significant(spread[1])}" if spread else NA
    calibrated = record.get("calibrated") or {}
    fraction = _with_bounds(calibrated)
    return _with_bounds(record.get("within_the_law") or {}), between, str(calibrated.get("reason") or fraction)


def _with_bounds(estimate: Mapping[str, Any]) -> str:
    value, low, high = (_number(estimate.get(name)) for name in ("fraction", "low", "high"))
    if value is None:
        return NA
    has_bounds = low is not None and high is not None
    return significant(value) + (f" [{significant(low)}, {significant(high)}]" if has_bounds else "")


def _compute_table(fidelity: Fidelity) -> ReportTable:
    beside = {key: beside_compute(by_metric["effective_compute"].record) for key, by_metric in fidelity.items()}
    places = [place for place in range(len(BESIDE)) if any(cells[place] != NA for cells in beside.values())]
    rows = []
    for key, by_metric in fidelity.items():
        measurement = by_metric["effective_compute"]
        bounds = (
            f"[{significant(measurement.low)}, {significant(measurement.high)}]"
            if None not in (measurement.low, measurement.high)
            else NA
        )
        value = number_cell(measurement.value, significant(measurement.value))
        cells = [text_cell(beside[key][place]) for place in places]
        notes = text_cell(measurement.flags if measurement.value is not None else measurement.reason)
        rows.append(
            (*_names(key), value, Cell(bounds, measurement.low), text_cell(measurement.law or NA), *cells, notes)
        )
    caption = (
        "The fraction of the original's training compute that gives the spliced loss. n/a: undefined, for "
        "the reason in the notes. Beside it stand the fraction within the law, the least and greatest within the laws "
        "in force, and the fraction calibrated on known pairs of models."
    )
    left = [
        TableColumn(heading, "left") for heading in ("variant", "text", "law", *(BESIDE[at] for at in places), "notes")
    ]
    columns = (*left[:2], TableColumn("effective compute"), TableColumn("95% interval"), *left[2:])
    defined = any(by_metric["effective_compute"].value is not None for by_metric in fidelity.values())
    return ReportTable("fidelity-compute", "Effective compute", caption, columns, tuple(rows) if defined else ())
