"""What SAELens leaves out of its older configurations without a word, though the dictionary was trained with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_lm_eval.errors import UserError

WEIGHTS = "sae_weights.safetensors"
FACTORS = ("scaling_factor", "finetuning_scaling_factor")
KEPT = ("relu", "topk", None)  # of the activation functions that such a configuration could name


def refuse_what_is_dropped(name: str, config: Mapping[str, Any], weights: Path) -> None:
    """Raise `UserError` where SAELens would load something else than was trained.

    `config` is cfg.json as it was written, `weights` the file beside it.
    """
    function = config.get("activation_fn_str", config.get("activation_fn"))
    if function not in KEPT:
        raise UserError(
            f"{name} was trained with the activation function '{function}', which SAELens takes for a ReLU: refused."
        )
    k = (config.get("activation_fn_kwargs") or {}).get("k", config.get("k"))
    if function == "topk" and k is None:
        raise UserError(f"{name} keeps its k largest latents, and its {function} has no k: refused.")
    if config.get("finetuning_scaling_factor") and not _are_ones(weights):
        raise UserError(
            f"{name} was finetuned with a scaling factor for each latent (finetuning_scaling_factor), "
            f"which SAELens no longer applies: refused."
        )


def _are_ones(weights: Path) -> bool:
    """Whether the file holds scaling factors and all of them are 1, so that they change nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "pt") as file:
            scales = [file.get_tensor(name) for name in file.keys() if name in FACTORS]  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
    return bool(scales) and all(torch.allclose(factors, torch.ones_like(factors)) for factors in scales)
