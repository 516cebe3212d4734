"""Dictionaries of Llamascopium (Language-Model-SAEs), as Llama Scope has them: `hyperparams.json` and
`checkpoints/final.safetensors`.

The formula is what the library makes of them for inference (`Initializer`, state "inference"): activations are in units
of the data set's average norm, and with `sparsity_include_decoder_norm` the threshold is for the norm of what a latent
writes, in the model's own units.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr
from torch import Tensor

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.formats import LLAMA_SCOPE
from sae_lm_eval.dictionaries.hub_files import hub_told, read_safetensors, weights_folder
from sae_lm_eval.dictionaries.saelens_object import from_sae
from sae_lm_eval.dictionaries.saelens_package import import_saelens
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.files.reading import Foreign, read_json

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
TENSORS = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"}
NORMS = ("dataset-wise", "inference")  # in the second they are folded into the weights
ACTIVATIONS = ("jumprelu", "relu", "topk")


class _Configuration(Foreign):
    hook_point_in: StrictStr
    hook_point_out: StrictStr | None = None
    act_fn: StrictStr = "relu"
    jump_relu_threshold: StrictFloat | StrictInt = 0.0
    norm_activation: StrictStr = "token-wise"
    sparsity_include_decoder_norm: StrictBool = True
    apply_decoder_bias_to_pre_encoder: StrictBool = True
    use_decoder_bias: StrictBool = True
    use_glu_encoder: StrictBool = False
    dataset_average_activation_norm: dict[StrictStr, StrictFloat | StrictInt] | None = None


def load_llama_scope(spec: SaeSpec) -> Dictionary:
    """An SAE or a transcoder, its norms folded into its weights.

    Raises `UserError` for a folder or repository without one, for unreadable files, and for what the formula does not
    cover: norms of single tokens, a gated encoder, a TopK without a threshold.
    """
    import_saelens()
    folder, commit = weights_folder(spec, CONFIG)
    if commit is not None:  # which has taken what lies in the folder itself
        _download_weights(replace(spec, revision=commit))
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"'{spec}' has a {CONFIG} and no {WEIGHTS}, which holds its weights.")
    config = read_json(folder / CONFIG, _Configuration, f"a configuration of {LLAMA_SCOPE.name}")
    _check(spec, config)
    tensors = _tensors(spec, folder / WEIGHTS, config)
    hooks = {"hook_name": config.hook_point_in}
    if config.hook_point_out not in (None, config.hook_point_in):
        hooks["hook_name_out"] = config.hook_point_out
    sae = _sae(spec, _folded(spec, config, tensors, *_factors(spec, config, tensors)), hooks)
    return replace(from_sae(sae, name=str(spec), own_config={"metadata": hooks}), revision=commit)


def _download_weights(spec: SaeSpec) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with hub_told(spec), suppress(EntryNotFoundError):  # which is told where the file is looked for
        hf_hub_download(spec.source, "/".join(filter(None, (spec.id, WEIGHTS))), revision=spec.revision)


def _check(spec: SaeSpec, config: _Configuration) -> None:
    where = f"In the {CONFIG} of '{spec}' the"
    one_of(config.act_fn, ACTIVATIONS, f"{where} act_fn")
    one_of(config.norm_activation, NORMS, f"{where} norm_activation")
    if config.act_fn == "topk" and config.jump_relu_threshold <= 0:
        raise UserError(f"The {CONFIG} of '{spec}' says act_fn: topk without a jump_relu_threshold to take its place.")
    if config.use_glu_encoder:
        raise UserError(f"The {CONFIG} of '{spec}' says use_glu_encoder: true, and gated encoders are not read.")


def _tensors(spec: SaeSpec, file: Path, config: _Configuration) -> dict[str, Tensor]:
    """Of the file, by our names, in float32: W_enc (d_in, latents), W_dec (latents, d_out)."""
    state_dict = read_safetensors(spec, file)
    if not config.use_decoder_bias and "decoder.bias" not in state_dict and "decoder.weight" in state_dict:
        state_dict["decoder.bias"] = torch.zeros(len(state_dict["decoder.weight"]))
    if missing := [name for name in TENSORS.values() if name not in state_dict]:
        raise UserError(f"The {WEIGHTS} of '{spec}' has no tensor '{missing[0]}'.")
    tensors = {ours: state_dict[theirs].float() for ours, theirs in TENSORS.items()}
    for name in ("W_enc", "W_dec"):
        if tensors[name].ndim != 2:
            raise UserError(f"The tensor '{TENSORS[name]}' of '{spec}' is no matrix: it has {tensors[name].ndim} axes.")
        tensors[name] = tensors[name].mT
    return tensors


def _factors(spec: SaeSpec, config: _Configuration, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
    """What activations are multiplied by where they are read and where they are written."""
    if config.norm_activation == "inference":
        return 1.0, 1.0
    norms = config.dataset_average_activation_norm or {}
    if not all(norms.get(way, 0) > 0 for way in ("in", "out")):
        raise UserError(
            f"The {CONFIG} of '{spec}' says norm_activation: dataset-wise, and for in and out no "
            f"dataset_average_activation_norm above 0."
        )
    return tensors["W_enc"].shape[0] ** 0.5 / norms["in"], tensors["W_dec"].shape[1] ** 0.5 / norms["out"]


def _folded(
    spec: SaeSpec, config: _Configuration, tensors: Mapping[str, Tensor], factor_in: float, factor_out: float
) -> dict[str, Tensor]:
    """The weights for activations as the model has them."""
    bias = tensors["b_enc"]
    if config.apply_decoder_bias_to_pre_encoder and config.use_decoder_bias:
        if tensors["b_dec"].shape != tensors["W_enc"].shape[:1]:
            raise UserError(f"The tensors of '{spec}' do not fit each other: the decoder's bias is to be read.")
        bias = bias - tensors["b_dec"] @ tensors["W_enc"]
    norms = tensors["W_dec"].norm(dim=-1)
    units = factor_out / norms if config.sparsity_include_decoder_norm else factor_in * torch.ones_like(norms)
    threshold = 0.0 if config.act_fn == "relu" else config.jump_relu_threshold
    return {
        "W_enc": tensors["W_enc"] * factor_in,
        "b_enc": bias,
        "W_dec": tensors["W_dec"] / factor_out,
        "b_dec": tensors["b_dec"] / factor_out,
        "threshold": threshold * units,
    }


def _sae(spec: SaeSpec, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Any:
    """A SAELens SAE or transcoder with these weights."""
    from sae_lens import SAE

    (d_in, d_sae), d_out = weights["W_enc"].shape, weights["W_dec"].shape[-1]
    shape = {"architecture": "jumprelu", "d_in": d_in, "d_sae": d_sae}
    if "hook_name_out" in metadata:
        shape |= {"architecture": "jumprelu_transcoder", "d_out": d_out}
    sae: Any = SAE.from_dict({**shape, "apply_b_dec_to_input": False, "metadata": dict(metadata)})
    try:
        sae.load_state_dict({name: tensor.contiguous() for name, tensor in weights.items()})
    except RuntimeError as error:
        raise UserError(f"The tensors of '{spec}' do not fit each other: {' '.join(str(error).split())}") from error
    return sae
