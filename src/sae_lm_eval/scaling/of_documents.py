"""Effective compute of what the sae_fidelity tasks measured. Neither torch nor lm_eval."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sae_lm_eval import world
from sae_lm_eval.scaling import (
    DeltaCE,
    Estimate,
    Family,
    Original,
    delta_from_documents,
    delta_from_losses,
    effective_compute,
    find_preset,
    get_original,
)
from sae_lm_eval.scaling.curve_estimates import CHECKPOINTS, same_loss
from sae_lm_eval.scaling.family import family_of
from sae_lm_eval.scaling.law_estimates import COMPUTE, LAW_RELATIVE, ON_A_LAW
from sae_lm_eval.scaling.loss_curves import MAIN

COUNTED = "counted when the world was made"


def original_of(
    model: str, revision: str = MAIN, *, params: float | None = None, tokens: float | None = None
) -> Original:
    """The model of a hub name or path, known by that name or as the world's; the numbers given win.

    What nobody knows is None. Raises `UserError` for numbers that are not positive.
    """
    if find_preset(model) is not None and revision == MAIN:
        return get_original(model=model, params=params, tokens=tokens)
    given = get_original(params=params, tokens=tokens)
    if not world.is_meant_by(model):
        given = replace(given, name=model or given.name)
        given = given if params is not None else replace(given, params_source="not known")
        return given if tokens is not None else replace(given, tokens_source="not known")
    main = world.facts()["family"][-1]
    known = Original(
        name=model,
        params=float(main["parameters"]),
        params_non_embedding=float(main["non_embedding_parameters"]),
        tokens=float(main["tokens"]),
        params_source=COUNTED,
        tokens_source=COUNTED,
        vocabulary=world.vocabulary_size(),
    )
    if params is not None:
        known = replace(known, params=params, params_non_embedding=None, params_source=given.params_source)
    return known if tokens is None else replace(known, tokens=tokens, tokens_source=given.tokens_source)


@functools.cache
def world_checkpoints() -> Family:
    """The losses of the world's own model in the course of its training."""
    facts = world.facts()
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


def compute_of(records: Sequence[Mapping[str, Any]], original: Original) -> dict[str, Any]:
    """Effective compute of a text's documents, with its law, 95% interval and flags, and that of each category.

    `records` hold the nats and tokens of each document. `fraction` is None for the `reason`. Categories are converted
    by the curve of the text. Where that was measured, it has no losses of theirs, and theirs are undefined.
    """
    found, quoted = _converted(records, original)
    names = sorted({record["category"] for record in records} - {None})
    if names:
        measured = quoted is not None and quoted.definition not in ON_A_LAW
        found["by_category"] = {
            name: told_of(without_losses(quoted), original)
            if quoted is not None and measured
            else _converted([record for record in records if record["category"] == name], original)[0]
            for name in names
        }
    return found


def _converted(records: Sequence[Mapping[str, Any]], original: Original) -> tuple[dict[str, Any], Estimate | None]:
    delta = _delta([record for record in records if record["tokens"]])
    blank = Estimate(quantity=COMPUTE, definition=LAW_RELATIVE, curve="", source="")
    if delta is None:
        return {**told_of(blank, original), "law": None, "reason": "no position was scored"}, None
    curve, unused = world_curve(original, delta.baseline)
    if curve is None and original.lacks is not None:
        return {**told_of(blank, original), "law": None, "reason": _lacking(original)}, None
    quoted = effective_compute(delta, original=original, checkpoints=curve).preferred
    return told_of(replace(quoted, flags=(*quoted.flags, *unused)), original), quoted


def told_of(quoted: Estimate, original: Original) -> dict[str, Any]:
    """An estimate and its original as plain values for a file of results."""
    interval = quoted.interval
    return {
        "fraction": quoted.fraction,
        "low": interval and interval.low,
        "high": interval and interval.high,
        "law": quoted.curve,
        "flags": list(quoted.flags),
        "reason": quoted.reason,
        "bound": quoted.bound,
        "definition": quoted.definition,
        "source": quoted.source,
        "constants": quoted.constants,
        "level": interval and interval.level,
        "covers": list(interval.covers) if interval else [],
        "model": original.name,
        "params": original.params,
        "params_source": original.params_source,
        "tokens": original.tokens,
        "tokens_source": original.tokens_source,
        "vocabulary": original.vocabulary,
    }


def _delta(records: Sequence[Mapping[str, Any]]) -> DeltaCE | None:
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
