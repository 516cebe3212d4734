"""What each variant is, and which variants differ in one thing: layer, width and L0, number of layers, or scale."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_lm_eval.report.drop_tables import DropRow, section_of
from sae_lm_eval.report.fidelity_tables import Fidelity, MetricValue, marked, parts_of, recorded_noise_floor
from sae_lm_eval.report.formatting import (
    NA,
    distinct_texts,
    significant,
)
from sae_lm_eval.report.provenance import changes_of, dictionary_of, splice_of
from sae_lm_eval.results.results import Results

BLOCK = re.compile(r"blocks\.(\d+)\.")
# Of a splice, what makes it another one; the mode and the scale are compared apart.
IDENTITY = (
    *("dictionary", "revision", "weights_checksum", "weights_sha256", "architecture"),
    *("hook_in", "hook_out", "map_in", "map_out"),
)
RECONSTRUCTION = "reconstruction"


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
        return "+".join(significant(measurement.value) for measurement in each) or significant(self.value("l0"))

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
        widths=tuple(dict.fromkeys(int(splice["d_dictionary"]) for splice in splices if splice.get("d_dictionary"))),
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
    measured = [
        record for record in (results.provenance.get("kl_at_answers") or {}).values() if record.get("kl") is not None
    ]
    positions = sum(record["positions"] for record in measured)
    if not positions:
        return None
    weights = [record["positions"] / positions for record in measured]
    kl = sum(weight * record["kl"] for weight, record in zip(weights, measured, strict=True))
    errors = [
        weight * record["stderr"]
        for weight, record in zip(weights, measured, strict=True)
        if record.get("stderr") is not None
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
    candidates = [setting for setting in chosen if setting.value("l0") is not None and cost(setting) is not None]
    return [
        candidates[at]
        for at in frontier([(setting.value("l0") or 0.0, cost(setting) or 0.0) for setting in candidates])
    ]


def drop_of(setting: Setting) -> float | None:
    return setting.drop.drop if setting.drop else None


def compute_lost(setting: Setting) -> float | None:
    compute = setting.value("effective_compute")
    return None if compute is None else -compute


def singles(chosen: Iterable[Setting]) -> list[Setting]:
    """The reconstructions by a single dictionary as it is, which have one L0."""
    return [setting for setting in chosen if setting.whole and setting.splices == 1 and not setting.changes]


def is_single(results: Results) -> bool:
    """Whether the results are of a reconstruction by a single dictionary as it is."""
    return bool(singles([_setting(results, None, {}, {})]))


def by_scale(chosen: Iterable[Setting]) -> list[list[Setting]]:
    """The variants that differ in nothing but the scale, in its order, where there are several scales."""
    families: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in chosen:
        if not math.isnan(setting.scale):
            families.setdefault((setting.same, setting.mode), []).append(setting)
    several = (family for family in families.values() if len({setting.scale for setting in family}) > 1)
    return [sorted(family, key=lambda setting: setting.scale) for family in several]


def by_layers(chosen: Iterable[Setting]) -> list[list[Setting]]:
    """Of the reconstructions at several layers, each once, those that add splices to one another, the fewest first.

    A variant stands in the family of the largest that has all its splices; one that is in none is a family of its own.
    """
    families: list[list[Setting]] = []
    for setting in sorted(
        (setting for setting in chosen if setting.whole and setting.layers), key=lambda setting: -setting.splices
    ):
        splices, how = set(setting.same[0]), setting.same[1:]
        fits = (family for family in families if family[-1].same[1:] == how and splices < set(family[-1].same[0]))
        family = next(fits, None)
        if family is None:
            families.append([setting])
        else:
            family.append(setting)
    return [family[::-1] for family in families]


def layers_differ(chosen: Iterable[Setting]) -> bool:
    return len({len(setting.layers) for setting in chosen if setting.whole and setting.layers}) > 1


def notes(chosen: Sequence[Setting]) -> list[str]:
    """Why variants whose fidelity was measured cannot be compared by L0."""
    alone = singles(chosen)
    if (
        not any(setting.fidelity for setting in alone)
        or len(alone) < 2
        or sum(setting.value("l0") is not None for setting in alone) > 1
    ):
        return []
    lacking = sum(setting.value("l0") is None for setting in alone)
    which = f"{lacking} of the {len(alone)}" if lacking < len(alone) else f"the {lacking}"
    return [
        f"Drop and effective compute are not drawn against L0: the results of {which} variants "
        "with one dictionary hold no L0; tasks of fidelity measure it."
    ]
