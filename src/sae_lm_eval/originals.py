"""What is known of a model before it is spliced: its parameters and training tokens, by its name. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_lm_eval import world
from sae_lm_eval.scaling import EffectiveCompute, Original, delta_from_losses, effective_compute, find_preset
from sae_lm_eval.scaling.delta import finite
from sae_lm_eval.scaling.measured import MAIN


def known_original(model: str, revision: str = MAIN) -> Original | None:
    """A known model, or the embedded world's, at its main revision; None for others."""
    if revision != MAIN:
        return None
    if not world.is_meant_by(model):
        return find_preset(model)
    own = next(row for row in world.facts()["family"] if row["name"] == MAIN)
    counted = "counted when the world was made"
    return Original(
        name=model,
        params=float(own["parameters"]),
        params_non_embedding=float(own["non_embedding_parameters"]),
        params_source=counted,
        tokens=float(own["tokens"]),
        tokens_source=counted,
    )


def unknown_original(model: str) -> Original:
    """A model of which nothing is known but its name."""
    return Original(name=model or "the original", params_source="not known", tokens_source="not known")


def convert_table(table: Mapping[str, Any], original: Original, **curve: Any) -> EffectiveCompute | None:
    """Effective compute from ce_baseline, ce_spliced and ce_delta_stderr of a table of metrics; None without losses.

    `curve` is what else `scaling.effective_compute` takes.
    """
    losses = {name: finite(table.get(name)) for name in ("ce_baseline", "ce_spliced")}
    if losses["ce_baseline"] is None or losses["ce_spliced"] is None:
        return None
    delta = delta_from_losses(
        ce_baseline=losses["ce_baseline"],
        ce_spliced=losses["ce_spliced"],
        standard_error=finite(table.get("ce_delta_stderr")),
    )
    return effective_compute(delta, original=original, **curve)


def recorded(table: Mapping[str, Any], original: Original) -> dict[str, Any] | None:
    """What a run's results say of the effective compute on a text: by the default law, as no curve is at hand."""
    result = convert_table(table, original)
    if result is None:
        return None
    record = result.record()
    if original.lacks is not None:
        record["reason"] = f"{original.lacks}, to sae-lm-eval effective-compute OUT"
    return record
