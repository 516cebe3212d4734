"""Per-layer transcoders in circuit-tracer's format: `layer_N.safetensors`, and a `config.yaml` beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import StrictInt, StrictStr
from torch import Tensor, nn

from sae_lm_eval.dictionaries import stated
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.hub_files import layer_files, read_safetensors
from sae_lm_eval.dictionaries.saelens_object import from_sae
from sae_lm_eval.dictionaries.saelens_package import import_saelens
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.files.reading import Foreign, checked, read_text, shown, yaml_value

CONFIG = "config.yaml"
LAYER = re.compile(r"(?:.*/)?layer_(\d+)")
TENSORS = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
OPTIONAL = {"threshold": "activation_function.threshold", "W_skip": "W_skip"}
K = "k"
ACTIVATIONS = ("relu", "jumprelu", "topk")
# circuit-tracer's load_transcoder_set knows it by name: its configuration says topk without k.
RELEASED_K = {"facebook/crv-8b-instruct-transcoders": 128}
# HookedTransformer.from_pretrained(..., fold_ln=False, center_writing_weights=False, center_unembed=False)
PROCESSING = {"fold_ln": False, "center_writing_weights": False}
SOURCE = "github.com/decoderesearch/circuit-tracer, replacement_model"


class _Configuration(Foreign):
    model_name: StrictStr | None = None
    feature_input_hook: StrictStr | None = None
    feature_output_hook: StrictStr | None = None
    activation: StrictStr | None = None
    k: StrictInt | None = None


class TopK(nn.Module):
    """The k largest of the latents, (..., latents), whatever their sign, and 0 elsewhere, as circuit-tracer has it:
    SAELens' own takes their ReLU besides.
    """

    kept: Tensor

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.register_buffer("kept", torch.tensor(k))  # k decides the output: what compares weights sees it

    def forward(self, latents: Tensor) -> Tensor:
        values, places = latents.topk(self.k, dim=-1)
        return torch.zeros_like(latents).scatter(-1, places, values)


def load_circuit_tracer(spec: SaeSpec) -> Dictionary:
    """The transcoder of one layer, f(x W_enc^T + b_enc) W_dec + b_dec, plus x W_skip^T where it has a skip connection.

    f is `TopK` where the configuration says so; else, of a latent h with a threshold t, h where h > t and 0 elsewhere;
    else ReLU. As circuit_tracer/transcoder/single_layer_transcoder.py has it.

    Raises `UserError` for a folder or repository without the layer, for unreadable files, for a tensor that is not of
    the format, and where the file and the configuration differ.
    """
    import_saelens()
    weights, config_file, commit = layer_files(spec, CONFIG)
    config, layer = _configuration(config_file), LAYER.fullmatch(spec.id or "")
    hooks = {"hook_name": config.feature_input_hook, "hook_name_out": config.feature_output_hook}
    named = {name: f"blocks.{layer[1]}.{hook}" for name, hook in hooks.items() if hook and layer}
    metadata = {**named, "model_name": config.model_name}
    tensors = _tensors(spec, weights)
    k = _topk(spec, config, tensors)
    sae = _sae(spec, tensors, metadata)
    if k is not None:
        sae.activation_fn = TopK(k)
    dictionary = from_sae(sae, name=str(spec), own_config={"metadata": metadata})
    if k is not None:
        numbers = stated.of_config({"k": k}, *dictionary.widths)
        dictionary = replace(dictionary, architecture=f"topk_{dictionary.architecture}", stated=numbers)
    return replace(dictionary, revision=commit, processing=PROCESSING, processing_source=SOURCE)


def _configuration(file: Path | None) -> _Configuration:
    """Nothing is said where there is no file, as in some repositories."""
    if file is None:
        return _Configuration()
    where = f"'{shown(file)}'"
    return checked(_Configuration, yaml_value(read_text(file), where), where, "a configuration of circuit-tracer")


def _topk(spec: SaeSpec, config: _Configuration, tensors: Mapping[str, Tensor]) -> int | None:
    """The k of a TopK transcoder, None of any other."""
    activation, latents = config.activation, tensors["b_enc"].numel()
    if activation is not None:
        one_of(activation, ACTIVATIONS, f"In the {CONFIG} of '{spec}' the activation")
    has_thresholds = OPTIONAL["threshold"] in tensors
    if activation == "jumprelu" and not has_thresholds:
        raise UserError(f"The {CONFIG} of '{spec}' says activation: jumprelu, and its file holds no thresholds.")
    if activation in ("relu", "topk") and has_thresholds:
        raise UserError(f"The {CONFIG} of '{spec}' says activation: {activation}, and its file holds thresholds.")
    if activation != "topk":
        if K in tensors:
            raise UserError(f"'{spec}' has a tensor '{K}', and no {CONFIG} beside it says activation: topk.")
        return None
    configured = RELEASED_K.get(spec.source, config.k)
    counts = {*([] if configured is None else [configured]), *(tensors[K].flatten().tolist() if K in tensors else [])}
    if not counts:
        raise UserError(f"The {CONFIG} of '{spec}' says activation: topk without k, how many latents are kept.")
    if len(counts) > 1:
        values = " and ".join(map(str, sorted(counts)))
        raise UserError(f"The {CONFIG} and the file of '{spec}' do not agree on k: {values}.")
    (k,) = counts
    if k not in range(1, latents + 1):
        raise UserError(f"'{spec}' has k={k}, where it must be how many of {latents} latents are kept.")
    return int(k)


def _sae(spec: SaeSpec, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Any:
    """A SAELens transcoder with the weights of the file."""
    from sae_lens import SAE

    weights = {name: tensors[key] for name, key in {**TENSORS, **OPTIONAL}.items() if key in tensors}
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
        sae.load_state_dict({name: weight.contiguous() for name, weight in weights.items()})
    except RuntimeError as error:
        raise UserError(f"The tensors of '{spec}' do not fit each other: {' '.join(str(error).split())}") from error
    return sae


def _tensors(spec: SaeSpec, file: Path) -> dict[str, Tensor]:
    """The tensors of a file, which has all that it must have and none that is not known."""
    tensors: dict[str, Tensor] = read_safetensors(spec, file)
    if missing := [name for name in TENSORS if name not in tensors]:
        raise UserError(f"'{spec}' has no tensor '{missing[0]}': it is no transcoder of one layer.")
    if unknown := [name for name in tensors if name not in (*TENSORS, *OPTIONAL.values(), K)]:
        raise UserError(f"'{spec}' has a tensor '{unknown[0]}', which circuit-tracer's format does not have.")
    return tensors
