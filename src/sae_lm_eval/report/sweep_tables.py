"""Variants that differ in one thing: layer, width and L0, the number of layers, the scale, or a random error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from sae_lm_eval.report.drop_tables import DropRow, Told, section_of, star
from sae_lm_eval.report.fidelity_tables import Fidelity, MetricValue, marked, parts_of, recorded_noise_floor, value_cell
from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    ReportTable,
    TableColumn,
    distinct_texts,
    fixed_decimals,
    listing,
    number_cell,
    significant,
    text_cell,
)
from sae_lm_eval.report.provenance import changes_of, dictionary_of, splice_of
from sae_lm_eval.results.results import Results

BLOCK = re.compile(r"blocks\.(\d+)\.")
# Of a splice, what makes it another one; the mode and the scale are compared apart.
IDENTITY = ("dictionary", "revision", "weights_checksum", "weights_sha256", "hook_in", "hook_out", "map_in", "map_out")
RANDOM_ERROR, RECONSTRUCTION = "random_error", "reconstruction"


@dataclass(frozen=True)
class Setting:
    """What a variant is and what was measured with it; None where that is not known.

    `same` is equal for variants that differ at most in mode and scale. `fidelity` is by metric, on one text. `changes`
    are edits of latents and what else makes it another splice than that of its dictionaries as they are.
    """

    name: str
    dictionary: str
    layers: tuple[str, ...]
    widths: tuple[int, ...]
    mode: str
    scale: float
    same: tuple[Any, ...]
    drop: DropRow | None
    fidelity: Mapping[str, MetricValue]
    kl_at_answers: MetricValue | None
    changes: tuple[str, ...] = ()

    @property
    def splices(self) -> int:
        return len(self.same[0])

    @property
    def layer(self) -> str:
        return "+".join(self.layers) or NA

    @property
    def width(self) -> str:
        return "+".join(f"{width:,}" for width in self.widths) or NA

    @property
    def l0(self) -> str:
        """Of several dictionaries that of each, in the order of the splices."""
        each = parts_of(self.fidelity, "l0").values()
        return "+".join(significant(made.value) for made in each) or significant(self.value("l0"))

    @property
    def whole(self) -> bool:
        """Whether the reconstruction stands in the place of the activation, and not a part or something else."""
        return self.mode == RECONSTRUCTION and self.scale == 1

    def value(self, metric: str) -> float | None:
        measured = self.fidelity.get(metric)
        return measured.value if measured else None


def settings(
    variants: Sequence[Results], rows: Sequence[DropRow], fidelity: Fidelity
) -> dict[str | None, list[Setting]]:
    """The variants by the text on which their fidelity was measured; None where none was."""
    floor = recorded_noise_floor(variants)
    variants = [results for results in variants if not results.provenance.get("noise_floor")]
    drops = {row.variant: row for row in section_of(rows, "overall")}
    texts = distinct_texts(task for _, task in fidelity) or [None]
    return {
        text: [
            _setting(results, drops.get(results.name), fidelity.get((results.name, text or ""), {}), floor)
            for results in variants
        ]
        for text in texts
    }


def _setting(
    results: Results, drop: DropRow | None, fidelity: Mapping[str, MetricValue], floor: Mapping[str, Any]
) -> Setting:
    record = results.provenance
    splices: list[dict[str, Any]] = record.get("splices") or []
    scales = {float(splice.get("scale", record.get("scale", 1.0))) for splice in splices} or {1.0}
    answered = _kl_at_answers(results)
    matches = [(BLOCK.match(hook), hook) for hook in (str(splice.get("hook_out")) for splice in splices)]
    return Setting(
        name=results.name,
        dictionary=dictionary_of(results),
        layers=tuple(dict.fromkeys(match[1] if match else hook for match, hook in matches)),
        widths=tuple(dict.fromkeys(int(of["d_dictionary"]) for of in splices if of.get("d_dictionary"))),
        mode=splice_of(results),
        scale=scales.pop() if len(scales) == 1 else math.nan,
        same=(
            tuple(tuple(str(splice.get(key)) for key in IDENTITY) for splice in splices),
            record.get("splice_tokens"),
            *changes_of(results),
        ),
        drop=drop,
        fidelity=fidelity,
        kl_at_answers=answered and marked(answered, floor),
        changes=changes_of(results),
    )


def _kl_at_answers(results: Results) -> MetricValue | None:
    """Over all tasks that were measured, each by its scored tokens, as in a comparison; nats per scored token."""
    measured = [of for of in (results.provenance.get("kl_at_answers") or {}).values() if of.get("kl") is not None]
    positions = sum(of["positions"] for of in measured)
    if not positions:
        return None
    weights = [of["positions"] / positions for of in measured]
    kl = sum(weight * of["kl"] for weight, of in zip(weights, measured, strict=True))
    errors = [
        weight * of["stderr"] for weight, of in zip(weights, measured, strict=True) if of.get("stderr") is not None
    ]
    stderr = math.hypot(*errors) if len(errors) == len(measured) else None
    return MetricValue(results.name, "answers", "kl_at_answers", kl, stderr, "nats/token")


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other beats: is at most as costly by both numbers and less by one; by the first number."""
    kept: list[int] = []
    for at in sorted(range(len(points)), key=lambda at: points[at]):
        if not kept or points[at][1] < points[kept[-1]][1] or points[at] == points[kept[-1]]:
            kept.append(at)
    return kept


def on_frontier(chosen: Sequence[Setting], cost: Callable[[Setting], float | None]) -> list[Setting]:
    """The variants that no other beats in L0 and `cost`."""
    known = [of for of in chosen if of.value("l0") is not None and cost(of) is not None]
    return [known[at] for at in frontier([(of.value("l0") or 0.0, cost(of) or 0.0) for of in known])]


def drop_of(of: Setting) -> float | None:
    return of.drop.drop if of.drop else None


def compute_lost(of: Setting) -> float | None:
    compute = of.value("effective_compute")
    return None if compute is None else -compute


def singles(chosen: Iterable[Setting]) -> list[Setting]:
    """The reconstructions by a single dictionary as it is, which have one L0."""
    return [of for of in chosen if of.whole and of.splices == 1 and not of.changes]


def is_single(results: Results) -> bool:
    """Whether the results are of a reconstruction by a single dictionary as it is."""
    return bool(singles([_setting(results, None, {}, {})]))


def by_scale(chosen: Iterable[Setting]) -> list[list[Setting]]:
    """The variants that differ in nothing but the scale, in its order, where there are several scales."""
    families: dict[tuple[Any, ...], list[Setting]] = {}
    for of in chosen:
        if not math.isnan(of.scale):
            families.setdefault((of.same, of.mode), []).append(of)
    several = (family for family in families.values() if len({of.scale for of in family}) > 1)
    return [sorted(family, key=lambda of: of.scale) for family in several]


def by_layers(chosen: Iterable[Setting]) -> list[list[Setting]]:
    """Of the reconstructions at several layers, each once, those that add splices to one another, the fewest first.

    A variant stands in the family of the largest that has all its splices; one that is in none is a family of its own.
    """
    families: list[list[Setting]] = []
    for of in sorted((of for of in chosen if of.whole and of.layers), key=lambda of: -of.splices):
        splices, how = set(of.same[0]), of.same[1:]
        fits = (family for family in families if family[-1].same[1:] == how and splices < set(family[-1].same[0]))
        family = next(fits, None)
        if family is None:
            families.append([of])
        else:
            family.append(of)
    return [family[::-1] for family in families]


def layers_differ(chosen: Iterable[Setting]) -> bool:
    return len({len(of.layers) for of in chosen if of.whole and of.layers}) > 1


def notes(chosen: Sequence[Setting]) -> list[str]:
    """Why variants whose fidelity was measured cannot be compared by L0."""
    alone = singles(chosen)
    if not any(of.fidelity for of in alone) or len(alone) < 2 or sum(of.value("l0") is not None for of in alone) > 1:
        return []
    lacking = sum(of.value("l0") is None for of in alone)
    which = f"{lacking} of the {len(alone)}" if lacking < len(alone) else f"the {lacking}"
    return [
        f"Drop and effective compute are not drawn against L0: the results of {which} variants "
        "with one dictionary hold no L0; tasks of fidelity measure it."
    ]


def sweep_tables(texts: Mapping[str | None, Sequence[Setting]], told: Told) -> list[ReportTable]:
    """For each text what was varied and what it did, and the damage beside that of random errors."""
    made = []
    for number, (text, chosen) in enumerate(texts.items(), start=1):
        suffix = f"-{number}" if len(texts) > 1 else ""
        l0s = [of for of in singles(chosen) if of.value("l0") is not None]
        if len(l0s) > 1 or layers_differ(chosen) or by_scale(chosen):
            made.append(_sweep_table(chosen, text, suffix, told))
        if pairs := random_errors(chosen):
            made.append(_random_error_table(pairs, text, suffix, told.level))
    return made


def _sweep_table(chosen: Sequence[Setting], text: str | None, suffix: str, told: Told) -> ReportTable:
    alone = singles(chosen)
    best = {"drop": on_frontier(alone, drop_of), "compute": on_frontier(alone, compute_lost)}
    rows = []
    for of in sorted(chosen, key=lambda of: (len(of.layers), of.value("l0") or math.inf)):
        fronts = [name for name, fronts in best.items() if of in fronts and len(fronts) < len(alone)]
        rows.append(
            {
                "variant": text_cell(of.name),
                "layer": text_cell(of.layer),
                "width": number_cell(sum(of.widths) or None, of.width),
                "mode": text_cell(f"{of.mode} ({', '.join(of.changes)})" if of.changes else of.mode),
                "scale": number_cell(of.scale, f"{of.scale:g}"),
                "L0": number_cell(of.value("l0"), of.l0),
                "drop": Cell(NA)
                if of.drop is None
                else number_cell(of.drop.drop, fixed_decimals(of.drop.drop) + star(of.drop, told)),
                "delta CE": _marked(of.fidelity.get("ce_delta")),
                "KL": _marked(of.fidelity.get("kl")),
                "KL at answers": _marked(of.kl_at_answers),
                "effective compute": _number(of.value("effective_compute")),
                "frontier": text_cell(" and ".join(fronts)),
            }
        )
    kept = [name for name in rows[0] if len({row[name].text for row in rows}) > 1 or name == "variant"]
    left = ("variant", "layer", "mode", "frontier")
    columns = tuple(TableColumn(name, "left" if name in left else "right") for name in kept)
    caption = (
        f"Drop in percentage points over all tasks (* adjusted p < {1 - told.level:.2g})"
        f"{f', fidelity on {text}' if text else ''}; delta CE and KL in nats/token, L0 in latents/token. Columns in "
        "which no variants differ are left out."
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


def _marked(of: MetricValue | None) -> Cell:
    """With its mark where it is within the noise floor."""
    return Cell(NA) if of is None else number_cell(of.value, f"{significant(of.value)}{of.mark}")


def random_errors(chosen: Sequence[Setting]) -> list[tuple[Setting, Setting]]:
    """Each reconstruction with the variant that has the same splices and scale, but a random error of the same norm."""
    random = {(of.same, of.scale): of for of in chosen if of.mode == RANDOM_ERROR}
    return [
        (of, random[of.same, of.scale]) for of in chosen if of.mode == RECONSTRUCTION and (of.same, of.scale) in random
    ]


def ratio_to_random(ours: MetricValue | None, random: MetricValue | None, level: float) -> tuple[float | None, str]:
    """How many times as large ours is, or None and why: a ratio means nothing unless both are clearly above 0."""
    values: list[float] = []
    for what, of in (("the SAE's error", ours), ("the random error", random)):
        if of is None or of.value is None:
            return None, f"not measured with {what}"
        low = of.value - NormalDist().inv_cdf((1 + level) / 2) * (of.stderr or 0.0)
        if of.value <= 0:
            return None, f"that of {what} is not above 0"
        if low <= 0:
            return None, f"the {level:.0%} interval of {what}'s contains 0"
        values.append(of.value)
    return values[0] / values[1], ""


def _random_error_table(
    pairs: Sequence[tuple[Setting, Setting]], text: str | None, suffix: str, level: float
) -> ReportTable:
    rows = []
    for ours, random in pairs:
        for what, mine, theirs in (
            (f"delta CE on {text}", ours.fidelity.get("ce_delta"), random.fidelity.get("ce_delta")),
            (f"KL on {text}", ours.fidelity.get("kl"), random.fidelity.get("kl")),
            ("KL at answers", ours.kl_at_answers, random.kl_at_answers),
        ):
            if mine is None and theirs is None:
                continue
            times, why = ratio_to_random(mine, theirs, level)
            rows.append(
                (
                    *map(text_cell, (ours.name, what)),
                    *(_with_error(of) for of in (mine, theirs)),
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


def _with_error(of: MetricValue | None) -> Cell:
    return value_cell(of) if of else Cell(NA)
