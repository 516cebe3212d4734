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


def compute_of(records: Sequence[Mapping[str, Any]], original: Original) -> dict[str, Any]:
    """Effective compute of a text's documents, with its law, 95% interval and flags, and that of each category.

    `records` hold the nats and tokens of each document. `fraction` is None for the `reason`. Categories are converted
    by the law alone, since a curve's losses are those of its whole text.
    """
    curve = world_checkpoints() if world.is_meant_by(original.name) else None
    found = _converted(records, original, curve)
    names = sorted({record["category"] for record in records} - {None})
    if names:
        found["by_category"] = {
            name: _converted([record for record in records if record["category"] == name], original, None)
            for name in names
        }
    return found


def _converted(records: Sequence[Mapping[str, Any]], original: Original, curve: Family | None) -> dict[str, Any]:
    delta = _delta([record for record in records if record["tokens"]])
    unused = []
    if curve is not None and delta is not None and not same_loss(float(curve.loss[-1]), delta.baseline or 0.0):
        unused = [
            f"the {CHECKPOINTS} curve of {curve.name} is not used: it ends at {curve.loss[-1]:.4g}, and the baseline "
            f"CE of these documents is {delta.baseline:.4g}"
        ]
        curve = None
    told = {"model": original.name, "params": original.params, "params_source": original.params_source}
    told |= {"tokens": original.tokens, "tokens_source": original.tokens_source}
    blank: dict[str, Any] = dict.fromkeys(("fraction", "low", "high", "law"))
    if delta is None:
        return {**blank, "flags": [], "reason": "no position was scored", **told}
    if curve is None and original.lacks is not None:
        return {**blank, "flags": [], "reason": _lacking(original), **told}
    quoted = effective_compute(delta, original=original, checkpoints=curve).preferred
    interval = quoted.interval
    return {
        "fraction": quoted.fraction,
        "low": interval and interval.low,
        "high": interval and interval.high,
        "law": quoted.curve,
        "flags": [*quoted.flags, *unused],
        "reason": quoted.reason,
        "bound": quoted.bound,
        "definition": quoted.definition,
        "source": quoted.source,
        "constants": quoted.constants,
        "level": interval and interval.level,
        "covers": list(interval.covers) if interval else [],
        **told,
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
