"""Per-layer transcoders in circuit-tracer's format: `layer_N.safetensors`, and a `config.yaml` beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import StrictStr
from torch import Tensor

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.hub_files import layer_files
from sae_lm_eval.dictionaries.saelens_object import from_sae
from sae_lm_eval.dictionaries.saelens_package import import_saelens
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign, checked, read_text, shown, yaml_value
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory

CONFIG = "config.yaml"
LAYER = re.compile(r"(?:.*/)?layer_(\d+)")
TENSORS = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
OPTIONAL = {"threshold": "activation_function.threshold", "W_skip": "W_skip"}
# HookedTransformer.from_pretrained(..., fold_ln=False, center_writing_weights=False, center_unembed=False)
PROCESSING = {"fold_ln": False, "center_writing_weights": False}
SOURCE = "github.com/decoderesearch/circuit-tracer, replacement_model"


class _Configuration(Foreign):
    model_name: StrictStr | None = None
    feature_input_hook: StrictStr | None = None
    feature_output_hook: StrictStr | None = None


def load_circuit_tracer(spec: SaeSpec) -> Dictionary:
    """The transcoder of one layer, relu(x W_enc^T + b_enc) W_dec + b_dec, with x W_skip^T where it has a skip
    connection, and latents that are not above their threshold 0 where it has thresholds.

    Raises `UserError` for a folder or repository without the layer, and for unreadable files.
    """
    import_saelens()
    weights, config_file, commit = layer_files(spec, CONFIG)
    config, layer = _configuration(config_file), LAYER.fullmatch(spec.id or "")
    hooks = {"hook_name": config.feature_input_hook, "hook_name_out": config.feature_output_hook}
    named = {name: f"blocks.{layer[1]}.{hook}" for name, hook in hooks.items() if hook and layer}
    metadata = {**named, "model_name": config.model_name}
    dictionary = from_sae(_sae(spec, weights, metadata), name=str(spec), said={"metadata": metadata})
    return replace(dictionary, revision=commit, processing=PROCESSING, processing_source=SOURCE)


def _configuration(file: Path | None) -> _Configuration:
    """Nothing is said where there is no file, as in some repositories."""
    if file is None:
        return _Configuration()
    where = f"'{shown(file)}'"
    return checked(_Configuration, yaml_value(read_text(file), where), where, "a configuration of circuit-tracer")


def _sae(spec: SaeSpec, file: Path, metadata: Mapping[str, Any]) -> Any:
    """A SAELens transcoder with the weights of the file."""
    from sae_lens import SAE

    tensors = _tensors(spec, file)
    if missing := [name for name in TENSORS if name not in tensors]:
        raise UserError(f"'{spec}' has no tensor '{missing[0]}': it is no transcoder of one layer.")
    weights = {name: tensors[of] for name, of in {**TENSORS, **OPTIONAL}.items() if of in tensors}
    if odd := [name for name in ("W_enc", "W_dec") if weights[name].ndim != 2]:
        raise UserError(f"The tensor '{odd[0]}' of '{spec}' is no matrix: it has {weights[odd[0]].ndim} axes.")
    if "threshold" in weights and bool((weights["threshold"] < 0).any()):
        raise UserError(f"'{spec}' has a threshold below 0, above which a latent could be negative: SAELens has none.")
    weights["W_enc"] = weights["W_enc"].mT
    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[-1]
    kind = ("jumprelu_" if "threshold" in weights else "") + ("skip_" if "W_skip" in weights else "")
    shape = {"architecture": f"{kind}transcoder", "d_in": d_in, "d_out": d_out, "d_sae": d_sae}
    sae: Any = SAE.from_dict({**shape, "apply_b_dec_to_input": False, "metadata": dict(metadata)})
    try:
        if "threshold" in weights:
            weights["threshold"] = weights["threshold"].expand(d_sae)
        sae.load_state_dict({name: of.contiguous() for name, of in weights.items()})
    except RuntimeError as error:
        raise UserError(f"The tensors of '{spec}' do not fit each other: {' '.join(str(error).split())}") from error
    return sae


def _tensors(spec: SaeSpec, file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"The weights of '{spec}' are truncated or corrupt ({error}): download them again.") from error
    except Exception as error:
        raise_if_out_of_memory(error)
        raise
