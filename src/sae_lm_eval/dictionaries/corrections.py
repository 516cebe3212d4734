"""Where SAELens' converters leave something out of a release's own formula: put right after loading, and told of.

Each value is made from the release's files, not from what SAELens made of them, so that a SAELens that puts it right
itself is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_lm_eval.dictionaries.saelens_reads import Reads


class LoadedFolder(NamedTuple):
    """What SAELens made of the folder `path` of a repository, from the files `reads`.

    `factor` is what activations are multiplied by before the release's own weights: it is folded into the SAE's.
    """

    sae: Any
    path: str
    factor: float
    reads: Reads

    def file(self, name: str) -> Path:
        """The file of that name. Raises `FileNotFoundError` where SAELens has read none."""
        path = self.reads.path(name)
        if path is None:
            raise FileNotFoundError(f"SAELens has read no {name} for {self.path}")
        return path


def corrected(converter: str | None, loaded: LoadedFolder) -> tuple[str, ...]:
    """Correct `loaded.sae` in place as its converter needs it; a remark for what was changed.

    Raises `OSError`, `KeyError` or `ValueError` where a file of the release is not as its format has it.
    """
    correct = CORRECTIONS.get(converter or "")
    remark = None if correct is None else correct(loaded)
    return () if remark is None else (remark,)


@torch.no_grad()
def _set(parameter: torch.nn.Parameter, value: torch.Tensor) -> bool:
    """Whether `value` differs from what `parameter` was."""
    value = value.to(parameter)
    if torch.allclose(parameter, value, rtol=1e-5, atol=0):
        return False
    parameter.copy_(value)
    return True


def _decoder_norms(loaded: LoadedFolder) -> torch.Tensor:
    """Those of the release's own decoder columns, (d_dictionary,)."""
    return loaded.sae.W_dec.detach().float().norm(dim=-1) * loaded.factor


THRESHOLD = "its thresholds are divided by the norms of the decoder's columns, as its authors do and SAELens does not"


def _llama_scope(loaded: LoadedFolder) -> str | None:
    # The authors compare pre-activation times column norm with a threshold in units of raw activations.
    config = json.loads(loaded.file("hyperparams.json").read_text())
    if not config.get("sparsity_include_decoder_norm", True):
        return None
    scale = config["d_model"] ** 0.5 / config["dataset_average_activation_norm"]["in"]
    thresholds = config["jump_relu_threshold"] * scale / _decoder_norms(loaded)
    return THRESHOLD if _set(loaded.sae.threshold, thresholds) else None


def _llama_scope_r1_distill(loaded: LoadedFolder) -> str | None:
    from safetensors import safe_open

    config = json.loads(loaded.file("config.json").read_text())
    if not config.get("sparsity_include_decoder_norm", False):
        return None
    with safe_open(loaded.file("sae_weights.safetensors"), "pt") as weights:
        thresholds = weights.get_tensor("log_jumprelu_threshold").float().exp() / _decoder_norms(loaded)
    return THRESHOLD if _set(loaded.sae.threshold, thresholds) else None


def _gemma_2(loaded: LoadedFolder) -> str | None:
    import numpy as np

    if "embedding" not in loaded.path:
        return None
    # It was trained on embeddings before the model multiplies them by sqrt(d).
    with np.load(loaded.file("params.npz")) as weights:
        bias = torch.from_numpy(weights["b_dec"]).float() * loaded.sae.cfg.d_in**0.5
    changed = _set(loaded.sae.b_dec, bias)
    return (
        "its decoder's bias is multiplied by sqrt(d_in), like its decoder, which SAELens leaves out"
        if changed
        else None
    )


CORRECTIONS: dict[str, Callable[[LoadedFolder], str | None]] = {
    "llama_scope": _llama_scope,
    "llama_scope_r1_distill": _llama_scope_r1_distill,
    "gemma_2": _gemma_2,
}
