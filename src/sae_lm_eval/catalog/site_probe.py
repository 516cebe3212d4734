"""Whether a site exists and can be written, tried on a small random model of a class."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_lm_eval.errors import UserError

if TYPE_CHECKING:
    from sae_lm_eval.splicing.hook_names import Architecture

WIDTH = 32
TEXT = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
# Three linear-attention layers to one with full attention: four layers are one of each place in the pattern.
HYBRID = {**TEXT, "num_hidden_layers": 4}
HEADS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {**HEADS, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gpt_neo": {
        **HEADS,
        "hidden_size": WIDTH,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_neox": {k: v for k, v in TEXT.items() if k not in ("num_key_value_heads", "head_dim")},
    "llama": TEXT,
    "mistral": TEXT,
    "qwen2": TEXT,
    "qwen3": TEXT,
    "qwen3_moe": {**TEXT, **EXPERTS},
    "gemma": TEXT,
    "gemma2": TEXT,
    "gemma3_text": TEXT,
    "gemma3": {"text_config": TEXT, "vision_config": {**VISION, "image_size": 14, "patch_size": 7}},
    "qwen3_5": {"text_config": HYBRID},
    "qwen3_5_moe": {"text_config": {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 16}},
    "gpt_oss": {**TEXT, "num_local_experts": 2, "num_experts_per_tok": 1},
}


@cache
def small_architecture(model_type: str) -> Architecture:
    """A random model of the class that transformers makes of a configuration of `model_type`, of a few layers."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from sae_lm_eval.splicing.hook_names import Architecture

    config = CONFIG_MAPPING[model_type](**SMALL[model_type])
    with torch.random.fork_rng(devices=[]):
        return Architecture(AutoModelForCausalLM.from_config(config).eval())


class SiteProbe(NamedTuple):
    """The activation maps at the two sites of a dictionary that can be spliced, or why it cannot."""

    maps: tuple[str, str] | None
    fault: str | None


@cache
def try_sites(
    model_type: str, hooks: tuple[str, str], modules: tuple[str | None, str | None], processing: tuple
) -> SiteProbe:
    """Find the sites (in, out) on a small model, let it read two tokens, and see that something passes both."""
    import torch
    from torch import nn

    from sae_lm_eval.dictionaries.dictionary import Dictionary
    from sae_lm_eval.splicing.activation_map import map_name
    from sae_lm_eval.splicing.module_io import record_activations
    from sae_lm_eval.splicing.site import writable_port
    from sae_lm_eval.splicing.variants import find_sites

    architecture = small_architecture(model_type)
    nothing = nn.Identity()
    dictionary = Dictionary(
        "the dictionary", nothing, nothing, nothing, "standard", WIDTH, WIDTH, WIDTH, *hooks, *modules,
        processing=dict(processing),
    )  # fmt: skip
    try:
        sites = find_sites(architecture, dictionary, None)
        ports = [sites[0].read, sites[1].read, writable_port(architecture, sites[1])]
    except UserError as error:
        # Layers are the small model's here.
        return SiteProbe(None, re.sub(r"(blocks\.|layers\.|[Ll]ayer )\d+", r"\1N", str(error)))
    passed = record_activations(architecture.model, ports, torch.tensor([[3, 4]]))
    if missing := [str(port) for port in ports if port not in passed]:
        return SiteProbe(None, f"nothing passes {', '.join(missing)} of {architecture.name} in a forward pass")
    map_in, map_out = (map_name(architecture, site, dictionary.processing) for site in sites)
    return SiteProbe((map_in, map_out), None)
