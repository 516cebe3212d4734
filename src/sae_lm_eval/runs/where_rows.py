"""What was found of a variant: rows by part of the tasks, measure and class, and the losses of each document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.attribution.classes import NESTED
from sae_lm_eval.attribution.patches import ONLY, RANDOM, RESTORED
from sae_lm_eval.attribution.segments import PromptDocument
from sae_lm_eval.comparison.restored import UNITS, IntervalEstimate, PairedLosses, shares, why_no_share
from sae_lm_eval.comparison.subsets import Cut
from sae_lm_eval.report.where_tables import SUM


@dataclass(frozen=True, eq=False)
class Explained:
    """A variant with what its documents lost, by measure and patch; `classes` are (division, class, keys by kind)."""

    name: str
    prompts: tuple[PromptDocument, ...]
    losses: Mapping[str, PairedLosses]
    whole: str
    classes: tuple[tuple[str, str, Mapping[str, str]], ...]
    facts: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...] = field(default=())

    def with_rows(self, cuts: Sequence[Cut], level: float) -> Explained:
        """With the estimates for each part of the tasks."""
        return replace(self, rows=tuple(row for cut in cuts for row in where_rows(self, cut, level)))

    def record(self) -> dict[str, Any]:
        """As plain values; undefined numbers are None."""
        return {**self.facts, "documents": len(self.prompts), "rows": [_plain(row) for row in self.rows]}

    def documents(self) -> pd.DataFrame:
        """A line for each document and patch: what was lost of accuracy, margin (nats) and KL (nats/token)."""
        lines = {
            "task": [document.task for document in self.prompts],
            "doc_id": [document.doc_id for document in self.prompts],
        }
        frames = []
        patches = [("", "", "whole", self.whole)]
        patches += [(*names, kind, key) for *names, keys in self.classes for kind, key in keys.items()]
        for division, name, kind, key in patches:
            lost = {f"{measure}_lost": losses.by_document(key) for measure, losses in self.losses.items()}
            frames.append(pd.DataFrame({**lines, "division": division, "class": name, "patch": kind, **lost}))
        return pd.concat(frames, ignore_index=True)


def where_rows(explanation: Explained, cut: Cut, level: float) -> Iterator[dict[str, Any]]:
    """A row for each measure and class: the drop, and the shares of it with their intervals.

    A division of several classes has a row for all of them together: the sums of the shares, 1 where the classes do
    not interact. Shares are undefined, with the reason, where the drop does not exclude 0.
    """
    chosen = np.isin([document.task for document in explanation.prompts], cut.tasks)
    divisions = dict.fromkeys(division for division, *_ in explanation.classes)
    for measure, losses in explanation.losses.items():
        part = losses.restricted(chosen)
        why = why_no_share(part, explanation.whole, level)
        drop = part.drop(explanation.whole, level)
        head = {"section": cut.section, "name": cut.name, "measure": measure, "unit": UNITS[measure]}
        head |= {"n": len(part.baseline), **_columns("drop", drop)}
        for division in divisions:
            own = [(name, keys) for axis, name, keys in explanation.classes if axis == division]
            together = len(own) > 1 and division not in NESTED
            sums = [(SUM, [keys for _, keys in own])] if together else []
            for name, group in [*((name, [keys]) for name, keys in own), *sums]:
                row = {**head, "division": division, "class": name, "reason": why}
                if why is None:
                    back, left = shares(
                        part, explanation.whole, [k[RESTORED] for k in group], [k[ONLY] for k in group], level
                    )
                    _, drawn = shares(part, explanation.whole, [], [k[RANDOM] for k in group], level)
                    row |= {**_columns("restored", back), **_columns("alone", left), **_columns("random", drawn)}
                if name != SUM and len(part.baseline):
                    row |= _columns("drop_alone", part.drop(group[0][ONLY], level))
                    row |= _columns("drop_random", part.drop(group[0][RANDOM], level))
                yield row


def _columns(name: str, estimate: IntervalEstimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in {**dict.fromkeys(COLUMNS), **row}.items()
    }


ESTIMATES = ("drop", "restored", "alone", "random", "drop_alone", "drop_random")
COLUMNS = (
    *("section", "name", "measure", "unit", "n", "division", "class", "reason"),
    *(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")),
)
