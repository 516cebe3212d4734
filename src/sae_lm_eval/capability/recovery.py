"""What of a dictionary's damage an adapter brings back: the model without and with the dictionary, without and with it.

The four are asked the same questions: the baseline, the dictionary, the adapter, and both.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.capability.ruler import fidelity_texts, sums_by_document
from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.comparison.restored import ACCURACY, UNDEFINED, IntervalEstimate, PairedLosses, why_no_share
from sae_lm_eval.results.find import is_control
from sae_lm_eval.results.results import Results

COLUMNS = (
    *("variant", "adapted", "adapter", "alone", "section", "name", "alias", "measure", "unit", "n"),
    *("drop", "low", "high", "drop_adapted", "adapted_low", "adapted_high"),
    *("share", "share_low", "share_high", "reason", "drop_alone", "alone_low", "alone_high", "level"),
)
DICTIONARY, BOTH, ALONE = "dictionary", "both", "alone"
NATS, POINTS, PER_TOKEN = "nats", "pp", "nats/token"
OF_TEXT = {"delta CE": "ce_delta", "KL": "kl"}
# Of a record, what two variants may differ in that differ in their adapter alone: what was measured of them, how, and
# what each best layer was found to cost.
ASIDE = frozenset(
    {"adapter", "schema", "packages", "control_of", "noise_floor", "kl_at_answers", "parted_texts", "cut_prompts"}
    | {"fidelity", "effective_compute"}
)
COSTS_FOUND = "kl_alone"


@dataclass(frozen=True)
class Square:
    """The results with a dictionary, with it and an adapter, and with the adapter alone, where they were asked for."""

    dictionary: Results
    both: Results
    adapter: str
    alone: Results | None

    @property
    def members(self) -> dict[str, Results]:
        corners = {DICTIONARY: self.dictionary, BOTH: self.both}
        return corners if self.alone is None else {**corners, ALONE: self.alone}


def squares_of(variants: Sequence[Results]) -> list[Square]:
    """The squares among variants: two reconstructions that differ in an adapter alone, and that adapter by itself.

    Where several results could be a corner, and their records do not tell them apart, none is.
    """
    plain = _unique((_same(run), run) for run in variants if _reconstructs(run) and not _adapter(run))
    alone = _unique((_content(run), run) for run in variants if _adapter(run) and not run.provenance.get("splices"))
    out = []
    for run in variants:
        if _adapter(run) and _reconstructs(run) and (dictionary := plain.get(_same(run))) is not None:
            out.append(Square(dictionary, run, str(_adapter(run)["name"]), alone.get(_content(run))))
    return out


def _unique(keyed: Iterable[tuple[Hashable, Results]]) -> dict[Hashable, Results]:
    """Those of which no other has the key."""
    groups: dict[Hashable, list[Results]] = {}
    for key, results in keyed:
        groups.setdefault(key, []).append(results)
    return {key: group[0] for key, group in groups.items() if len(group) == 1}


def _reconstructs(results: Results) -> bool:
    return bool(results.provenance.get("splices")) and not is_control(results)


def _adapter(results: Results) -> dict[str, Any]:
    return results.provenance.get("adapter") or {}


def _content(results: Results) -> tuple[Any, ...]:
    """Of an adapter; results of earlier versions do not say its settings."""
    return tuple(_adapter(results).get(name) for name in ("weights_checksum", "settings_checksum"))


def _same(results: Results) -> str:
    """What two variants share that differ in their adapter alone."""
    record = {name: value for name, value in results.provenance.items() if name not in ASIDE}
    if best_layers := record.get("best_layers"):
        record["best_layers"] = {name: value for name, value in best_layers.items() if name != COSTS_FOUND}
    return json.dumps(record, sort_keys=True)


def recovery(comparison: Comparison) -> pd.DataFrame:
    """A row for each square, measure and part of the tasks, with `COLUMNS`; each question counts alike.

    `drop` is what the dictionary costs, `drop_adapted` what it costs with the adapter, `drop_alone` what the adapter
    costs by itself: pp of accuracy, and nats/token of delta CE and KL on the first text of fidelity. `share` is what
    comes back of the drop, 1 - drop_adapted / drop, with Fieller's interval, or None for the `reason`.
    """
    rows: list[dict[str, Any]] = []
    squares = squares_of(comparison.variants)
    if not squares:
        return pd.DataFrame(columns=list(COLUMNS), dtype=object)
    texts = fidelity_texts(comparison)
    for square in squares:
        labels = {"variant": square.dictionary.name, "adapted": square.both.name, "adapter": square.adapter}
        labels |= {"alone": None if square.alone is None else square.alone.name, "level": comparison.level}
        rows += [
            {**labels, **row} for row in (*_of_questions(comparison, square), *_of_text(texts, square, comparison))
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def _of_questions(comparison: Comparison, square: Square) -> list[dict[str, Any]]:
    """Of what is right or wrong: over all tasks, and by group, category and task."""
    drops = comparison.drops
    if drops.empty:
        return []
    accurate = set(drops.loc[(drops["section"] == "task") & (drops["kind"] == "accuracy") & drops["primary"], "name"])
    documents: Any = comparison.documents()
    documents = documents[documents["task"].isin(accurate)]
    parts = {key: documents[documents["variant"] == results.name] for key, results in square.members.items()}
    first = parts[DICTIONARY]
    lost = {key: part.set_index(["task", "doc_id"])["score_lost"] for key, part in parts.items()}
    index = lost[DICTIONARY].index
    losses = {key: series.reindex(index).to_numpy(dtype=float) for key, series in lost.items()}
    sets = None if comparison.docs_by is None else first["set"].to_numpy()
    tasks, numbers = (first[name].to_numpy() for name in ("task", "doc_id"))
    rows = []
    for cut in comparison.cuts:
        inside = np.isin(tasks, [task for task in cut.tasks if task in accurate])
        if cut.chosen is not None:
            pairs = zip(tasks, numbers, strict=True)
            inside &= np.array([number in cut.chosen.get(task, ()) for task, number in pairs], dtype=bool)
        if not inside.any():
            continue
        baseline = first["baseline"].to_numpy(dtype=float)[inside]
        kept = {key: values[inside] for key, values in losses.items()}
        own = PairedLosses(ACCURACY, baseline, kept)
        unit = 1.0
        if sets is not None:
            own, unit = _by_set(kept, sets[inside]), 100.0
        place = {"section": cut.section, "name": cut.name, "alias": cut.alias, "measure": ACCURACY, "unit": POINTS}
        rows.append({**place, "n": int(inside.sum()), **_estimates(own, comparison.level, unit)})
    return rows


def _by_set(losses: Mapping[str, np.ndarray], sets: np.ndarray) -> PairedLosses:
    """Losses summed over the documents that belong together, each sum over so many."""
    _, place, sizes = np.unique(sets.astype(str), return_inverse=True, return_counts=True)
    sums = {key: np.bincount(place, weights=values) for key, values in losses.items()}
    return PairedLosses(f"{ACCURACY} over sets", np.zeros(len(sizes)), sums, sizes.astype(float))


def _of_text(texts: Mapping[str, pd.DataFrame], square: Square, comparison: Comparison) -> list[dict[str, Any]]:
    """Of the first text of fidelity, by its documents."""
    rows = []
    for measure, cost in OF_TEXT.items():
        read: dict[str, Any] = {name: sums[sums["tokens"] > 0] for name, sums in sums_by_document(texts, cost).items()}
        corners = {key: read[results.name] for key, results in square.members.items() if results.name in read}
        if not {DICTIONARY, BOTH} <= corners.keys():
            continue
        first = corners[DICTIONARY]
        if not all(sums["tokens"].equals(first["tokens"]) for sums in corners.values()):
            continue
        n, tokens = len(first), first["tokens"].to_numpy()
        own = PairedLosses(measure, np.zeros(n), {key: sums["sum"].to_numpy() for key, sums in corners.items()}, tokens)
        place = {"section": "text", "name": "text", "alias": "text", "measure": measure, "unit": PER_TOKEN, "n": n}
        rows.append({**place, **_estimates(own, comparison.level)})
    return rows


def _estimates(losses: PairedLosses, level: float, unit: float = 1) -> dict[str, Any]:
    """`unit` is what the losses' mean is multiplied by."""
    drop, adapted = (losses.drop(key, level) for key in (DICTIONARY, BOTH))
    alone = losses.drop(ALONE, level) if ALONE in losses.by_key else UNDEFINED
    reason = why_no_share(losses, DICTIONARY, level)
    share = UNDEFINED
    if reason is None:
        share = losses.share(losses.by_key[DICTIONARY] - losses.by_key[BOTH], DICTIONARY, level)
    return {
        **_named(drop, ("drop", "low", "high"), unit),
        **_named(adapted, ("drop_adapted", "adapted_low", "adapted_high"), unit),
        **_named(share, ("share", "share_low", "share_high")),
        "reason": reason,
        **_named(alone, ("drop_alone", "alone_low", "alone_high"), unit),
    }


def _named(estimate: IntervalEstimate, names: tuple[str, str, str], unit: float = 1) -> dict[str, float | None]:
    values = (estimate.value, estimate.low, estimate.high)
    return {name: None if np.isnan(value) else unit * value for name, value in zip(names, values, strict=True)}
