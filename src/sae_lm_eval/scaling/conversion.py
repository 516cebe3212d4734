"""What becomes of the losses of a text and of its categories: the one place where the curve is chosen.

A run converts its documents when it has measured them, `effective-compute OUT` and the report what its files hold. All
come here, so that all say the same. Neither torch nor lm_eval.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sae_lm_eval import world
from sae_lm_eval.scaling.calibration import CALIBRATED
from sae_lm_eval.scaling.curve_estimates import CHECKPOINTS, PUBLISHED, same_loss
from sae_lm_eval.scaling.delta import DeltaCE, delta_from_documents, delta_from_losses
from sae_lm_eval.scaling.effective import EffectiveCompute, effective_compute
from sae_lm_eval.scaling.estimate import Estimate
from sae_lm_eval.scaling.family import Family, family_of
from sae_lm_eval.scaling.law_estimates import AT_THE_LOSS, COMPUTE, LAW_RELATIVE
from sae_lm_eval.scaling.loss_curves import Curves
from sae_lm_eval.scaling.original_model import Original

# Definitions that take of a text no more than the rise of its loss, so that they convert its categories too.
BORROWED = (PUBLISHED, CALIBRATED, LAW_RELATIVE, AT_THE_LOSS)
# The texts of tasks on which known pairs of models have losses (docs/calibration.md).
TEXTS = {"sae_fidelity_wikitext": "wikitext", "sae_fidelity_pile": "pile"}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Effective compute of a text and of its categories; `notes` are of curves that were not used."""

    result: EffectiveCompute
    by_category: Mapping[str, EffectiveCompute] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """As plain values for a file of results, the text's notes among its flags."""
        values = self.result.record()
        return {**values, "flags": [*values["flags"], *self.notes]}


def convert_text(
    delta: DeltaCE,
    original: Original,
    categories: Mapping[str, DeltaCE] | None = None,
    *,
    task: str = "",
    beside: Curves | None = None,
    **arguments: Any,
) -> Conversion:
    """Effective compute of a text, by the curve that was asked for, or else one measured beside the run, or else the
    course of the world's own training, or else what can be borrowed; and of its categories, all by the text's curve.

    `arguments` are what else `effective_compute` takes.
    """
    arguments = {"text": TEXTS.get(task), **arguments}
    curves = beside or Curves()
    notes = curves.notes
    has_curve = arguments.get("family") is not None or arguments.get("checkpoints") is not None
    measured: dict[str, Any] = {}
    if not has_curve and curves.own is not None:
        measured = {"family": curves.family, "checkpoints": curves.checkpoints}
    elif not has_curve:
        measured["checkpoints"], unused = world_curve(original, delta.baseline)
        notes = (*notes, *unused)
    options = dict[str, Any](arguments)
    options.update(measured)
    result = effective_compute(delta, original=original, **options)
    parts = {
        name: _category(part, result, curves.by_category.get(name), original, arguments)
        for name, part in (categories or {}).items()
    }
    return Conversion(result=result, by_category=parts, notes=notes)


def _category(
    delta: DeltaCE, whole: EffectiveCompute, own: Curves | None, original: Original, arguments: Mapping[str, Any]
) -> EffectiveCompute:
    """A category by its own losses on the text's curve, or by what the text borrows; otherwise undefined."""
    options: dict[str, Any] = {**arguments, "text": None, "family": None, "checkpoints": None}
    if own is not None:
        options.update(family=own.family, checkpoints=own.checkpoints)
    effective = effective_compute(delta, original=original, **options)
    if own is None and whole.preferred.definition not in BORROWED:
        return replace(effective, estimates=(without_losses(whole.preferred),))
    return effective


@functools.cache
def world_checkpoints() -> Family:
    """The losses of the world's own model in the course of its training."""
    facts = world.world_facts()
    rows = [
        {"model": row["name"], "flops": row["compute"], "loss": row["loss"]}
        for row in (*facts["checkpoints"], facts["family"][-1])
    ]
    return family_of(rows, name="world checkpoints", kind="checkpoints", where="documents of the world")


def world_curve(original: Original, baseline: float | None) -> tuple[Family | None, tuple[str, ...]]:
    """The course of the world's training where that is the original and ends at its loss, else why it is not used."""
    if not world.is_meant_by(original.name):
        return None, ()
    curve = world_checkpoints()
    if baseline is None or same_loss(float(curve.loss[-1]), baseline):
        return curve, ()
    return None, (
        f"the {CHECKPOINTS} curve of {curve.name} is not used: it ends at {curve.loss[-1]:.4g}, and the baseline "
        f"CE of these documents is {baseline:.4g}",
    )


def without_losses(quoted: Estimate) -> Estimate:
    """What is said of a category whose text was converted by a measured curve that has no losses of the category."""
    return Estimate(
        quantity=quoted.quantity,
        definition=quoted.definition,
        curve=quoted.curve,
        source=quoted.source,
        reason=f"its text is converted by the {quoted.definition} curve of {quoted.curve}, which has no losses of this "
        "category",
    )


def compute_of(records: Sequence[Mapping[str, Any]], original: Original, task: str = "") -> dict[str, Any]:
    """Effective compute of a text's documents, with its law, 95% interval and flags, and that of each category.

    `records` hold the nats and tokens of each document. `fraction` is None for the `reason`.
    """
    delta = _delta(records)
    names = sorted({record["category"] for record in records} - {None})
    if delta is None:
        return _undefined(original, "no position was scored", names)
    deltas = {name: _delta([record for record in records if record["category"] == name]) for name in names}
    categories = {name: part for name, part in deltas.items() if part is not None}
    conversion = convert_text(delta, original, categories, task=task)
    if conversion.result.preferred.reason == original.lacks is not None:
        return _undefined(original, _lacking(original), names)
    record = conversion.record()
    if names:
        empty = _undefined(original, "no position was scored", [])
        by_category = {name: part.record() for name, part in conversion.by_category.items()}
        record["by_category"] = {name: by_category.get(name, empty) for name in names}
    return record


def _undefined(original: Original, reason: str, categories: Sequence[str]) -> dict[str, Any]:
    blank = Estimate(quantity=COMPUTE, definition=LAW_RELATIVE, curve="", source="", reason=reason)
    effective = EffectiveCompute(delta=DeltaCE(value=float("nan")), original=original, estimates=(blank,), level=0.95)
    record = {**effective.record(), "law": None}
    return {**record, "by_category": dict.fromkeys(categories, record)} if categories else record


def _delta(records: Sequence[Mapping[str, Any]]) -> DeltaCE | None:
    records = [record for record in records if record["tokens"]]
    if not records:
        return None
    baseline, spliced, tokens = (
        np.array([record[name] for record in records]) for name in ("nll_baseline", "nll_spliced", "tokens")
    )
    if len(records) > 1:
        return delta_from_documents(baseline_nats=baseline, spliced_nats=spliced, tokens=tokens)
    return delta_from_losses(ce_baseline=float(baseline[0] / tokens[0]), ce_spliced=float(spliced[0] / tokens[0]))


def _lacking(original: Original) -> str:
    if original.params is None:
        return "needs parameters and training tokens: give both in --model_args, as in params=124e6,tokens=1e10"
    why = "" if original.tokens_source == "not known" else f": {original.tokens_source}"
    return f"needs training tokens, not known of {original.name}{why}: give them in --model_args, as in tokens=1e10"
