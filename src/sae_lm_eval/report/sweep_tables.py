"""Variants that differ in one thing: layer, width and L0, the number of layers, the scale, or a random error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from sae_lm_eval.report.drop_tables import Significance, star
from sae_lm_eval.report.fidelity_tables import MetricValue, shown_text, value_cell
from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    ReportTable,
    TableColumn,
    fixed_decimals,
    listing,
    number_cell,
    significant,
    text_cell,
)
from sae_lm_eval.report.sweep_settings import (
    RECONSTRUCTION,
    Setting,
    by_scale,
    compute_lost,
    drop_of,
    layers_differ,
    on_frontier,
    singles,
)

RANDOM_ERROR = "random_error"


def sweep_tables(texts: Mapping[str | None, Sequence[Setting]], significance: Significance) -> list[ReportTable]:
    """For each text what was varied and what it did, and the damage beside that of random errors."""
    tables = []
    for number, (text, chosen) in enumerate(texts.items(), start=1):
        suffix = f"-{number}" if len(texts) > 1 else ""
        l0s = [setting for setting in singles(chosen) if setting.value("l0") is not None]
        if len(l0s) > 1 or layers_differ(chosen) or by_scale(chosen):
            tables.append(_sweep_table(chosen, text, suffix, significance))
        if pairs := random_errors(chosen):
            tables.append(_random_error_table(pairs, text, suffix, significance.level))
    return tables


def _sweep_table(chosen: Sequence[Setting], text: str | None, suffix: str, significance: Significance) -> ReportTable:
    alone = singles(chosen)
    is_luck = any(setting.drop.at_chance for setting in alone if setting.drop)  # where there is nothing to lose
    best = {"drop": [] if is_luck else on_frontier(alone, drop_of), "compute": on_frontier(alone, compute_lost)}
    rows = []
    for setting in sorted(chosen, key=lambda setting: (len(setting.layers), setting.value("l0") or math.inf)):
        fronts = [name for name, fronts in best.items() if setting in fronts and len(fronts) < len(alone)]
        rows.append(
            {
                "variant": text_cell(setting.name),
                "layer": text_cell(setting.layer),
                "width": number_cell(sum(setting.widths) or None, setting.width),
                "mode": text_cell(
                    f"{setting.mode} ({', '.join(setting.changes)})" if setting.changes else setting.mode
                ),
                "scale": number_cell(setting.scale, f"{setting.scale:g}"),
                "L0": number_cell(setting.value("l0"), setting.l0),
                "drop": Cell(NA)
                if setting.drop is None
                else number_cell(
                    setting.drop.drop, fixed_decimals(setting.drop.drop) + star(setting.drop, significance)
                ),
                "delta CE": _marked(setting.fidelity.get("ce_delta")),
                "KL": _marked(setting.fidelity.get("kl")),
                "KL at answers": _marked(setting.kl_at_answers),
                "effective compute": _number(setting.value("effective_compute")),
                "frontier": text_cell(" and ".join(fronts)),
            }
        )
    kept = [name for name in rows[0] if len({row[name].text for row in rows}) > 1 or name == "variant"]
    left = ("variant", "layer", "mode", "frontier")
    columns = tuple(TableColumn(name, "left" if name in left else "right") for name in kept)
    caption = (
        f"Drop in percentage points over all tasks (* adjusted p < {1 - significance.level:.2g})"
        f"{f', fidelity on {shown_text(text)}' if text else ''}; delta CE and KL in nats/token, L0 in "
        "latents/token. Columns in which no variants differ are left out."
    )
    if "frontier" in kept:
        caption += " Frontier: no other reconstruction has at most its L0 and at most its drop (at least its compute)."
    return ReportTable(
        f"sweep{suffix}",
        "The variants side by side",
        caption,
        columns,
        tuple(tuple(row[k] for k in kept) for row in rows),
    )


def _number(value: float | None) -> Cell:
    return number_cell(value, significant(value))


def _marked(measurement: MetricValue | None) -> Cell:
    """With its mark where it is within the noise floor."""
    return (
        Cell(NA)
        if measurement is None
        else number_cell(measurement.value, f"{significant(measurement.value)}{measurement.mark}")
    )


def random_errors(chosen: Sequence[Setting]) -> list[tuple[Setting, Setting]]:
    """Each reconstruction with the variant that has the same splices and scale, but a random error of the same norm."""
    random = {(setting.same, setting.scale): setting for setting in chosen if setting.mode == RANDOM_ERROR}
    return [
        (setting, random[setting.same, setting.scale])
        for setting in chosen
        if setting.mode == RECONSTRUCTION and (setting.same, setting.scale) in random
    ]


def ratio_to_random(ours: MetricValue | None, random: MetricValue | None, level: float) -> tuple[float | None, str]:
    """How many times as large ours is, or None and why: a ratio means nothing unless both are clearly above 0."""
    values: list[float] = []
    for what, measurement in (("the SAE's error", ours), ("the random error", random)):
        if measurement is None or measurement.value is None:
            return None, f"not measured with {what}"
        low = measurement.value - NormalDist().inv_cdf((1 + level) / 2) * (measurement.stderr or 0.0)
        if measurement.value <= 0:
            return None, f"that of {what} is not above 0"
        if low <= 0:
            return None, f"the {level:.0%} interval of {what}'s contains 0"
        values.append(measurement.value)
    return values[0] / values[1], ""


def _random_error_table(
    pairs: Sequence[tuple[Setting, Setting]], text: str | None, suffix: str, level: float
) -> ReportTable:
    rows = []
    for ours, random in pairs:
        for what, mine, theirs in (
            (f"delta CE on {shown_text(text)}", ours.fidelity.get("ce_delta"), random.fidelity.get("ce_delta")),
            (f"KL on {shown_text(text)}", ours.fidelity.get("kl"), random.fidelity.get("kl")),
            ("KL at answers", ours.kl_at_answers, random.kl_at_answers),
        ):
            if mine is None and theirs is None:
                continue
            times, why = ratio_to_random(mine, theirs, level)
            rows.append(
                (
                    *map(text_cell, (ours.name, what)),
                    *(_with_error(measurement) for measurement in (mine, theirs)),
                    number_cell(times, significant(times)),
                    text_cell(why),
                )
            )
    if not any(row[-1].text for row in rows):
        rows = [row[:-1] for row in rows]
    columns = [
        TableColumn("variant", "left"),
        TableColumn("damage", "left"),
        *map(TableColumn, ("SAE's error", "random error", "ratio")),
    ]
    columns += [TableColumn("notes", "left")] * (len(rows[0]) - len(columns)) if rows else []
    names = listing(random.name for _, random in pairs)
    caption = (
        "What the dictionary's error costs beside a random vector of the same norm at the same place "
        f"({names}), in nats/token ± standard error. n/a: undefined, for the reason in the notes."
    )
    return ReportTable(f"random-error{suffix}", "SAE's error and random error", caption, tuple(columns), tuple(rows))


def _with_error(measurement: MetricValue | None) -> Cell:
    return value_cell(measurement) if measurement else Cell(NA)
