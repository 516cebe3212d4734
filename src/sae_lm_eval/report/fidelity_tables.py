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
GROUP = "sae_fidelity_"  # how the names of these tasks begin; tables do without it

# By (variant, task): the metrics by name.
Fidelity = dict[tuple[str, str], dict[str, MetricValue]]


def fidelity_of(variants: Sequence[Results]) -> Fidelity:
    floor = recorded_noise_floor(variants)
    return {
        (results.name, task): {made.metric: marked(made, floor) for made in _measured(results, task)}
        for results in variants
        if not results.provenance.get("noise_floor")
        for task in results.fidelity_tasks
    }


def recorded_noise_floor(variants: Sequence[Results]) -> dict[str, Any]:
    """What the row baseline_again recorded; empty without one."""
    return next((found for results in variants if (found := results.provenance.get("noise_floor"))), {})


def marked(made: MetricValue, floor: Mapping[str, Any]) -> MetricValue:
    """With a flag where the value is no greater than what the baseline's own numbers move by."""
    least = _number(floor.get(FLOORS.get(made.metric, "")))
    if least is None or made.value is None or abs(made.value) > least:
        return made
    return replace(made, flags=f"{WITHIN}, {significant(least)}")


def noise_table(variants: Sequence[Results]) -> list[ReportTable]:
    """The noise floor, where the row baseline_again was run."""
    floor = recorded_noise_floor(variants)
    if not floor:
        return []
    caption = (
        f"The untouched model on {floor['sequences']:,} prompts and documents of the run, once each by itself and "
        f"once in batches of {floor['rows'][1]} in the opposite order: mean KL and absolute rise of the CE in "
        f"nats/token, and the share of positions with another likeliest token. {NOISE} marks values that are no "
        "greater. How many answers change with the batch size is in the rows of baseline_again."
    )
    cells = [number_cell(floor[name], significant(floor[name])) for name in ("kl", "ce_delta", "flips")]
    columns = tuple(map(TableColumn, ("KL", "delta CE", "top-1 flips", "tokens")))
    count = number_cell(floor["tokens"], f"{floor['tokens']:,}")
    return [ReportTable("noise-floor", "Noise floor", caption, columns, ((*cells, count),))]


def tidy(fidelity: Fidelity) -> pd.DataFrame:
    """A row for each (variant, task, metric)."""
    rows = [asdict(measured) for of in fidelity.values() for measured in of.values()]
    return pd.DataFrame(rows, columns=[one.name for one in fields(MetricValue) if one.name != "record"])


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
        made = MetricValue(results.name, task, metric, value, stderr, unit)
        if metric == "effective_compute":
            made = _effective_compute(made, results)
        lacking = [METRICS[part][0] for part in NEEDED.get(metric, ()) if not is_number(scores.get(f"{part},none"))]
        if made.value is not None and lacking:
            made = replace(made, value=None, stderr=None, reason=f"the results lack the {' and the '.join(lacking)}")
        yield made if made.value is not None or made.reason else replace(made, reason="not in the results")


def sites_of(scores: Mapping[str, Any]) -> list[str]:
    """The sites of several dictionaries, in the order of the results; none where there is but one."""
    return [
        key.removeprefix("l0/").removesuffix(",none")
        for key in scores
        if key.startswith("l0/") and "_stderr" not in key
    ]


def parts_of(of: Mapping[str, MetricValue], metric: str) -> dict[str, MetricValue]:
    """A metric of each of several dictionaries, by its site."""
    return {name.partition("/")[2]: made for name, made in of.items() if name.startswith(f"{metric}/")}


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _effective_compute(made: MetricValue, results: Results) -> MetricValue:
    """As `effective-compute` converts the results, or where it cannot, as the run recorded it."""
    record = quoted(results, made.task)
    is_recorded = bool((results.provenance.get("effective_compute") or {}).get(made.task))
    if record.get("fraction") is None and not record.get("bound") and made.value is not None and not is_recorded:
        record = {}  # the scores have a fraction that nothing tells of
    flags = record.get("flags") or []
    told = "; ".join(map(str, [flags] if isinstance(flags, str) else flags))
    value = _number(record.get("fraction", made.value))
    why = record.get("reason") or told or "the run converted no loss"
    if value is None and record.get("bound"):
        why = f"{record['bound']}: {why}"
    return replace(
        made,
        value=value,
        low=_number(record.get("low")),
        high=_number(record.get("high")),
        law=record.get("law"),
        flags=told,
        reason=None if value is not None else why,
        record=record,
    )


def fidelity_tables(fidelity: Fidelity) -> list[ReportTable]:
    """Losses, outputs, activations and effective compute; a column that is undefined throughout is left out."""
    tables = [_table(fidelity, *told) for told in TABLES]
    return [table for table in (*tables, _compute_table(fidelity)) if table.rows]


def _table(fidelity: Fidelity, name: str, title: str, metrics: Sequence[str], opening: str) -> ReportTable:
    shown = [metric for metric in metrics if any(_defined(of, metric) for of in fidelity.values())]
    lacking = {(METRICS[m][0], of[m].reason) for of in fidelity.values() for m in shown if m in NEEDED and of[m].reason}
    notes = "".join(f" No {heading} is shown where {reason}." for heading, reason in sorted(lacking))
    rows: list[tuple[Cell, ...]] = []
    several = any(parts_of(of, metric) for of in fidelity.values() for metric in shown)
    for key, of in fidelity.items():
        sites = list(parts_of(of, shown[0])) if shown else []
        for site in sites or [None]:
            made = (of[metric if site is None else f"{metric}/{site}"] for metric in shown)
            place = [text_cell(site or "")] if several else []
            rows.append((*_names(key), *place, *map(value_cell, made)))
    left = ("variant", "text", *(["site"] if several else []))
    columns = (*(TableColumn(head, "left") for head in left), *(TableColumn(METRICS[metric][0]) for metric in shown))
    caption = _caption(fidelity, shown, opening) + notes
    return ReportTable(f"fidelity-{name}", title, caption, columns, tuple(rows) if shown else ())


def _caption(fidelity: Fidelity, shown: Sequence[str], opening: str) -> str:
    meanings = list(dict.fromkeys(MEANINGS[metric] for metric in shown))
    made = (
        value for of in fidelity.values() for metric in shown for value in (of[metric], *parts_of(of, metric).values())
    )
    errors = " ±: standard error." if any(value.value is not None and value.stderr for value in made) else ""
    return f"{opening}: {listing(meanings)}.{errors}" if meanings else ""


def _defined(of: Mapping[str, MetricValue], metric: str) -> bool:
    return any(made.value is not None for made in (of[metric], *parts_of(of, metric).values()))


def _names(key: tuple[str, str]) -> tuple[Cell, Cell]:
    variant, task = key
    return text_cell(variant), text_cell(task.removeprefix(GROUP))


def shown_text(task: str | None) -> str:
    """A task of fidelity as a report names its text."""
    return (task or "").removeprefix(GROUP)


def value_cell(made: MetricValue) -> Cell:
    """With its standard error to two significant digits, and as many decimals itself."""
    if made.value is None or not made.stderr:
        return number_cell(made.value, f"{significant(made.value, 4) if made.value != 0 else '0'}{made.mark}")
    digits = min(max(1 - math.floor(math.log10(made.stderr)), 0), MOST_DECIMALS)
    if round(made.stderr, digits) == 0:  # an error of rounding
        rounded = round(made.value, digits)
        return number_cell(made.value, f"{significant(rounded, 4) if rounded else '0'}{made.mark}")
    return number_cell(
        made.value, f"{fixed_decimals(made.value, digits)} ± {fixed_decimals(made.stderr, digits)}{made.mark}"
    )


def beside_compute(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of a record of effective compute: the fraction within the law, the spread of the laws and the calibration.

    Where a fraction is not calibrated, the reason.
    """
    spread = record.get("law_spread")
    between = f"{significant(spread[0])} to {significant(spread[1])}" if spread else NA
    calibrated = record.get("calibrated") or {}
    told = _with_bounds(calibrated)
    return _with_bounds(record.get("within_the_law") or {}), between, str(calibrated.get("reason") or told)


def _with_bounds(estimate: Mapping[str, Any]) -> str:
    value, low, high = (_number(estimate.get(name)) for name in ("fraction", "low", "high"))
    if value is None:
        return NA
    known = low is not None and high is not None
    return significant(value) + (f" [{significant(low)}, {significant(high)}]" if known else "")


def _compute_table(fidelity: Fidelity) -> ReportTable:
    beside = {key: beside_compute(of["effective_compute"].record) for key, of in fidelity.items()}
    known = [place for place in range(len(BESIDE)) if any(cells[place] != NA for cells in beside.values())]
    rows = []
    for key, of in fidelity.items():
        made = of["effective_compute"]
        bounds = f"[{significant(made.low)}, {significant(made.high)}]" if None not in (made.low, made.high) else NA
        value = number_cell(made.value, significant(made.value))
        cells = [text_cell(beside[key][place]) for place in known]
        notes = text_cell(made.flags if made.value is not None else made.reason)
        rows.append((*_names(key), value, Cell(bounds, made.low), text_cell(made.law or NA), *cells, notes))
    caption = (
        "The fraction of the original's training compute that gives the spliced loss. n/a: undefined, for "
        "the reason in the notes. Beside it stand the fraction within the law, the least and greatest within the laws "
        "in force, and the fraction calibrated on known pairs of models."
    )
    left = [
        TableColumn(heading, "left") for heading in ("variant", "text", "law", *(BESIDE[at] for at in known), "notes")
    ]
    columns = (*left[:2], TableColumn("effective compute"), TableColumn("95% interval"), *left[2:])
    defined = any(of["effective_compute"].value is not None for of in fidelity.values())
    return ReportTable("fidelity-compute", "Effective compute", caption, columns, tuple(rows) if defined else ())
