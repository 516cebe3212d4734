"""TransformerLens' own reimplementation of the models, as an oracle for where activations are and what an edit does."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import transformers
from transformer_lens import HookedTransformer
from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
from transformer_lens.loading_from_pretrained import convert_hf_model_config
from transformer_lens.pretrained import weight_conversions as convert

WEIGHTS = {
    "GPT2LMHeadModel": convert.convert_gpt2_weights,
    "GPTNeoForCausalLM": convert.convert_neo_weights,
    "GPTNeoXForCausalLM": convert.convert_neox_weights,
    "LlamaForCausalLM": convert.convert_llama_weights,
    "MistralForCausalLM": convert.convert_mistral_weights,
    "Qwen2ForCausalLM": convert.convert_qwen2_weights,
    "Qwen3ForCausalLM": convert.convert_qwen3_weights,
    "Gemma2ForCausalLM": convert.convert_gemma_weights,
    "Gemma3ForCausalLM": convert.convert_gemma_weights,
    "Gemma3ForConditionalGeneration": convert.convert_gemma_weights,
}
# `center_unembed` moves no activation, and is no identity where the logits are capped afterwards.
PROCESSING = {"fold_ln", "center_writing_weights", "fold_value_biases"}
ALL_PROCESSING = {*PROCESSING, "center_unembed", "refactor_factored_attn_matrices"}


def hooked_transformer(model: transformers.PreTrainedModel, *, processed: bool) -> HookedTransformer:
    """`model` in TransformerLens, with the default processing of its `from_pretrained` or with none."""
    name = type(model).__name__
    values = gemma_config(model) if name.startswith("Gemma") else config_by_transformer_lens(model)
    if processed:
        values["normalization_type"] = {"LN": "LNPre", "RMS": "RMSPre"}[values["normalization_type"]]
    config = HookedTransformerConfig.from_dict(
        {**values, "tokenizer_name": None, "device": "cpu", "dtype": torch.float32, "model_name": name}
    )
    state = WEIGHTS[name](model, config)
    hooked = HookedTransformer(config, move_to_device=False)
    hooked.load_and_process_state_dict(state, **{p: processed and p in PROCESSING for p in ALL_PROCESSING})
    return hooked.eval()


def config_by_transformer_lens(model: transformers.PreTrainedModel) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = model.config
        config.architectures = [type(model).__name__]
        if config.model_type == "gpt2":
            config.n_ctx = config.n_positions  # transformers 5 no longer has the old name
        config.save_pretrained(folder)
        return convert_hf_model_config(folder)


def gemma_config(model: transformers.PreTrainedModel) -> dict[str, Any]:
    """TransformerLens knows Gemma's shapes by the names of the released sizes only."""
    text = model.config.get_text_config()
    third = text.model_type != "gemma2"
    rope = text.rope_parameters
    return {
        "d_model": text.hidden_size,
        "d_head": text.head_dim,
        "n_heads": text.num_attention_heads,
        "n_key_value_heads": text.num_key_value_heads,
        "d_mlp": text.intermediate_size,
        "n_layers": text.num_hidden_layers,
        "n_ctx": text.max_position_embeddings,
        "eps": text.rms_norm_eps,
        "d_vocab": text.vocab_size,
        "act_fn": "gelu_pytorch_tanh",
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": text.head_dim,
        "rotary_base": (rope["full_attention"] if third else rope)["rope_theta"],
        "use_attn_scale": True,
        "attn_scale": text.query_pre_attn_scalar**0.5,
        "window_size": text.sliding_window,
        "use_local_attn": True,
        "attn_types": ["local" if "sliding" in kind else "global" for kind in text.layer_types],
        "gated_mlp": True,
        "final_rms": True,
        "use_normalization_before_and_after": True,
        "original_architecture": type(model).__name__,
        **(
            {"use_qk_norm": True, "rotary_base_local": rope["sliding_attention"]["rope_theta"]}
            if third
            else {"attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0}
        ),
    }
