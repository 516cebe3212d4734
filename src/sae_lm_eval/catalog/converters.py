"""What SAELens' converters will say of a registered dictionary, without a file of the hub.

It is taken from their own code where that needs no such file, and read off names as they do where it does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup as Release

NO_FACTOR = "expected_average_only_in"


def _by_saelens(release: Release, id_: str) -> dict[str, Any]:
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_CONFIG_GETTERS as GETTERS

    assert release.conversion_func is not None
    return GETTERS[release.conversion_func](release.repo_id, release.saes_map[id_], "cpu", False, None)


GEMMA_3_HOOKS = {
    "resid_post": ("hook_resid_post", None),
    "attn_out": ("attn.hook_z", None),
    "mlp_out": ("hook_mlp_out", None),
    "transcoder": ("hook_mlp_in", "hook_mlp_out"),
}


def _gemma_3(release: Release, id_: str) -> dict[str, Any]:
    # SAELens' own getter asks the hub for the shapes of the weights; the rest of it needs names alone.
    from sae_lens.loading.pretrained_sae_loaders import _infer_gemma_3_raw_cfg_dict

    path = release.saes_map[id_]
    raw = _infer_gemma_3_raw_cfg_dict(release.repo_id, path)
    kind = path.split("/")[0].removesuffix("_all")
    layer = _layer(r"layer_(\d+)", path)
    hook_in, hook_out = GEMMA_3_HOOKS[kind]
    name = raw["model_name"]
    config = {
        "architecture": "jumprelu",
        "model_name": name.removesuffix("-pt") if "270m" in name else name,
        "hook_name": f"blocks.{layer}.{hook_in}",
        "hf_hook_name": raw["hf_hook_point_in"],
    }
    if hook_out is not None:
        config["architecture"] = "jumprelu_skip_transcoder" if raw["affine_connection"] else "jumprelu_transcoder"
        config["hook_name_out"] = f"blocks.{layer}.{hook_out}"
        config["hf_hook_name_out"] = raw["hf_hook_point_out"]
    return config


def _mwhanna(release: Release, id_: str) -> dict[str, Any]:
    layer = _layer(r"_(\d+)\.safetensors", release.saes_map[id_])
    return {
        "architecture": "transcoder",
        "hook_name": f"blocks.{layer}.mlp.hook_in",
        "hook_name_out": f"blocks.{layer}.hook_mlp_out",
        "model_from_pretrained_kwargs": {"fold_ln": False},
    }


LLAMA_SCOPE_HOOKS = {"R": "hook_resid_post", "A": "hook_attn_out", "M": "hook_mlp_out"}


def _llama_scope(release: Release, id_: str) -> dict[str, Any]:
    match = re.search(r"L(\d+)([RAM])\b", release.saes_map[id_])
    if match is None:
        raise ValueError(f"no layer and site in {release.saes_map[id_]}")
    return {
        "architecture": "jumprelu",
        "model_name": "meta-llama/Llama-3.1-8B",
        "hook_name": f"blocks.{match[1]}.{LLAMA_SCOPE_HOOKS[match[2]]}",
        "normalize_activations": NO_FACTOR,
    }


def _residual_of_path(release: Release, id_: str) -> dict[str, Any]:
    layer = _layer(r"layer_(\d+)", release.saes_map[id_])
    return {"hook_name": f"blocks.{layer}.hook_resid_post"}


def _temporal(release: Release, id_: str) -> dict[str, Any]:
    return {"architecture": "temporal", **_residual_of_path(release, id_)}


def _hook_z_of_id(release: Release, id_: str) -> dict[str, Any]:
    layer = _layer(r"blocks\.(\d+)", id_)
    return {"architecture": "standard", "model_name": "gpt2-small", "hook_name": f"blocks.{layer}.attn.hook_z"}


def _hook_of_id(release: Release, id_: str) -> dict[str, Any]:
    match = re.match(r"blocks\.\d+\.hook_[a-z]+(_[a-z]+)*", id_)
    return {"hook_name": match[0]} if match else {}


def _nothing(release: Release, id_: str) -> dict[str, Any]:
    return {}


def _layer(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no layer in '{text}'")
    return int(match[1])


class Converter(NamedTuple):
    """How a converter's dictionaries are read here.

    `inferred` says what comes from a name while SAELens will take it from a file of the hub. Where `decided_by`
    names such a file, the name is no sure guide to what it holds. `refused` is why what it makes is never spliced.
    """

    read: Callable[[Release, str], dict[str, Any]]
    inferred: str | None = None
    decided_by: str | None = None
    remark: str | None = None
    refused: str | None = None


CLT_FAULT = (
    "one layer of a cross-layer transcoder, its decoders summed: SAELens means it for activations, "
    "not for reconstruction"
)
LOADING_REMARK = "it does not say how TransformerLens loaded its model, so the map is a guess: hook_map= states another"
CONVERTERS = {
    "sae_lens": Converter(_hook_of_id, "hook from its id, map from the registry's overrides", decided_by="cfg.json"),
    "gemma_2": Converter(_by_saelens),
    "gemma_2_transcoder": Converter(_by_saelens),
    "gemma_3": Converter(_gemma_3, "modules and skip connection from its path"),
    "qwen_scope": Converter(_by_saelens),
    "deepseek_r1": Converter(_by_saelens),
    "goodfire": Converter(_by_saelens),
    "llama_scope": Converter(_llama_scope, "hook from its path"),
    "llama_scope_r1_distill": Converter(_llama_scope, "hook from its path"),
    "dictionary_learning_1": Converter(_residual_of_path, "layer from its path"),
    "mwhanna_transcoder": Converter(_mwhanna),
    "connor_rob_hook_z": Converter(_hook_z_of_id, "hook from its id", remark=LOADING_REMARK),
    "temporal": Converter(_temporal),
    "mntss_clt_layer_transcoder": Converter(_nothing, decided_by="config.yaml", refused=CLT_FAULT),
}
UNKNOWN = Converter(_nothing, decided_by="metadata")
