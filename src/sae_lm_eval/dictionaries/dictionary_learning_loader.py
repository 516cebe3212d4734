"""Dictionaries of dictionary_learning (Marks, Karvonen & Mueller 2024): folders with `ae.pt` and `config.json`."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import StrictInt, StrictStr
from torch import Tensor

from sae_lm_eval.dictionaries import stated
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.formats import DICTIONARY_LEARNING
from sae_lm_eval.dictionaries.hub_files import pickle_refusal, weights_folder
from sae_lm_eval.dictionaries.release_facts import BY_DICTIONARY_LEARNING, NO_PROCESSING
from sae_lm_eval.dictionaries.saelens_object import from_sae
from sae_lm_eval.dictionaries.saelens_package import import_saelens
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError, first_line, one_of
from sae_lm_eval.files.reading import Foreign, read_json
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory

WEIGHTS, CONFIG = "ae.pt", "config.json"
SUBMODULE = re.compile(r"resid_post_layer_(\d+)")  # as the library's own training script names it


@dataclass(frozen=True)
class ClassLayout:
    """How a class of dictionary_learning is said in SAELens' terms.

    `tensors` are the file's names by SAELens'; the weight of a linear layer is transposed. `subtracts_bias` is whether
    the decoder's bias is taken off what is read. `scales_latents` is whether latents are given in units of their
    decoder vectors' norms.
    """

    architecture: str
    tensors: Mapping[str, str]
    subtracts_bias: bool = True
    scales_latents: bool = False


LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
GATES = {"b_gate": "gate_bias", "r_mag": "r_mag", "b_mag": "mag_bias"}
LAYOUTS = {
    "AutoEncoder": ClassLayout("standard", {**LINEAR, "b_enc": "encoder.bias", "b_dec": "bias"}),
    "AutoEncoderNew": ClassLayout(
        "standard", {**LINEAR, "b_enc": "encoder.bias", "b_dec": "decoder.bias"}, subtracts_bias=False
    ),
    "GatedAutoEncoder": ClassLayout("gated", {**LINEAR, **GATES, "b_dec": "decoder_bias"}, scales_latents=True),
    "JumpReluAutoEncoder": ClassLayout(
        "jumprelu", {**PLAIN, "threshold": "threshold"}, subtracts_bias=False, scales_latents=True
    ),
    # Its file has a threshold, too, which encoding does not use.
    "AutoEncoderTopK": ClassLayout("topk", {**LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"}),
    "BatchTopKSAE": ClassLayout(
        "jumprelu", {**LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec", "threshold": "threshold"}
    ),
    "MatryoshkaBatchTopKSAE": ClassLayout("jumprelu", {**PLAIN, "threshold": "threshold"}),
}


class _Trainer(Foreign):
    dict_class: StrictStr
    k: StrictInt | None = None
    lm_name: StrictStr | None = None
    submodule_name: StrictStr | None = None


class _Buffer(Foreign):
    ctx_len: StrictInt | None = None


class _Configuration(Foreign):
    trainer: _Trainer
    buffer: _Buffer | None = None


def load_dictionary_learning(spec: SaeSpec) -> Dictionary:
    """Raises `UserError` for a folder that holds none, a class that is not known, and unreadable files."""
    import_saelens()
    folder, commit = weights_folder(spec, WEIGHTS)
    config = read_json(folder / CONFIG, _Configuration, f"a configuration of {DICTIONARY_LEARNING.name}")
    trainer = config.trainer
    layout = LAYOUTS[one_of(trainer.dict_class, LAYOUTS, f"In '{spec}' the dict_class")]
    tensors = _tensors(spec, folder / WEIGHTS)
    if missing := [name for name in layout.tensors.values() if name not in tensors]:
        raise UserError(
            f"The {WEIGHTS} of '{spec}' has no tensor '{missing[0]}', which its class {trainer.dict_class} has."
        )
    place = SUBMODULE.fullmatch(trainer.submodule_name or "")
    metadata = {
        "model_name": trainer.lm_name,
        "hook_name": f"blocks.{place[1]}.hook_resid_post" if place else None,
        "context_size": None if config.buffer is None else config.buffer.ctx_len,
    }
    sae = _sae(spec, layout, {name: tensors[key] for name, key in layout.tensors.items()}, trainer.k, metadata)
    dictionary = from_sae(sae, name=str(spec), own_config={"metadata": metadata})
    numbers = stated.of_config({"k": trainer.k}, *dictionary.widths)
    return replace(
        dictionary, revision=commit, stated=numbers, processing=NO_PROCESSING, processing_source=BY_DICTIONARY_LEARNING
    )


def _tensors(spec: SaeSpec, file: Path) -> dict[str, Tensor]:
    try:
        state_dict = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL " in str(error):  # a name that torch does not look up
            raise pickle_refusal(spec) from error
        raise _corrupt(spec, error) from error
    except Exception as error:  # whatever a file of somebody else's makes torch raise
        raise_if_out_of_memory(error)
        raise _corrupt(spec, error) from error
    if not isinstance(state_dict, Mapping):
        raise UserError(f"The {WEIGHTS} of '{spec}' holds no tensors by name.")
    return {str(name): value for name, value in state_dict.items() if isinstance(value, Tensor)}


def _corrupt(spec: SaeSpec, error: Exception) -> UserError:
    return UserError(f"The weights of '{spec}' are truncated or corrupt ({first_line(error)}): download them again.")


def _sae(
    spec: SaeSpec, layout: ClassLayout, tensors: Mapping[str, Tensor], k: int | None, metadata: Mapping[str, Any]
) -> Any:
    """A SAELens SAE with the weights of the file."""
    from sae_lens import SAE

    for name in ("W_enc", "W_dec"):
        if tensors[name].ndim != 2:
            said = f"it has {tensors[name].ndim} axes"
            raise UserError(f"The tensor '{layout.tensors[name]}' of '{spec}' is no matrix: {said}.")
    weights = {
        name: tensor.mT if layout.tensors[name].endswith(".weight") else tensor for name, tensor in tensors.items()
    }
    d_in, d_sae = weights["W_enc"].shape
    if layout.architecture == "topk" and (k is None or not 0 < k <= d_sae):
        raise UserError(f"The {CONFIG} of '{spec}' has k={k}, where it must say how many of {d_sae} latents are kept.")
    config = {
        "architecture": layout.architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": layout.subtracts_bias,
        **({"k": k} if layout.architecture == "topk" else {}),
        "metadata": dict(metadata),
    }
    sae: Any = SAE.from_dict(config)
    try:
        if "threshold" in weights:  # one for all latents in some classes
            weights["threshold"] = weights["threshold"].expand(d_sae)
        sae.load_state_dict({name: tensor.contiguous() for name, tensor in weights.items()})
    except RuntimeError as error:
        raise UserError(f"The tensors of '{spec}' do not fit each other: {' '.join(str(error).split())}") from error
    if layout.scales_latents:
        sae.fold_W_dec_norm()
    return sae
