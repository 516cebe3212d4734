"""Small random models of real architectures, and random dictionaries for them."""

from __future__ import annotations

import tokenizers
import torch
import transformers
from sae_lens import SAE

WIDTH, LAYERS, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 32, 3, 4, 2, 101, 64
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD_DIM = {"head_dim": 12}
IDS = {name: COMMON[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WINDOW = {"sliding_window": 8}


def _configs() -> dict[str, transformers.PretrainedConfig]:
    t = transformers
    gemma_3 = {**COMMON, **HEAD_DIM, **WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
    gemma_3["layer_types"] = gemma_3["layer_types"][:LAYERS]
    return {
        "gpt2": t.GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, **IDS
        ),
        "gpt_neo": t.GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_layers=4,
            num_heads=HEADS,
            attention_types=[[["global", "local"], 2]],
            window_size=8,
            max_position_embeddings=CONTEXT,
            **IDS,
        ),
        "gpt_neox": t.GPTNeoXConfig(**{k: v for k, v in COMMON.items() if k != "num_key_value_heads"}),
        "llama": t.LlamaConfig(**COMMON),
        "mistral": t.MistralConfig(**COMMON, **WINDOW),
        "qwen2": t.Qwen2Config(**COMMON),
        "qwen3": t.Qwen3Config(**COMMON, **HEAD_DIM),
        "gemma2": t.Gemma2Config(**COMMON, **HEAD_DIM, **WINDOW, query_pre_attn_scalar=12),
        "gemma3": t.Gemma3TextConfig(**gemma_3, query_pre_attn_scalar=12),
        "gemma3_multimodal": t.Gemma3Config(
            text_config={**gemma_3, "query_pre_attn_scalar": 12},
            vision_config={**VISION, "image_size": 14, "patch_size": 7},
            mm_tokens_per_image=4,
            **IDS,
        ),
    }


ARCHITECTURES = tuple(_configs())
LAYER_NORM = ("gpt2", "gpt_neo", "gpt_neox")


def random_model(name: str, *, seed: int = 0) -> transformers.PreTrainedModel:
    """A model in float32 whose norms and biases are as random as its matrices, so that no term is invisible."""
    config = _configs()[name]
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(weight + 0.3 * noise if key.endswith("weight") else 0.3 * noise)
            elif "vision" not in key:
                weight.copy_(noise * (0.5 if "embed" in key or "wte" in key else 1.2) / weight.shape[-1] ** 0.5)
    return model.requires_grad_(False)


def random_ids(rows: int = 2, length: int = 20, *, seed: int = 0) -> torch.Tensor:
    """Token ids without special ones, but for a BOS at the front and an EOS inside."""
    ids = torch.randint(3, VOCABULARY - 1, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[-1, length // 2] = 1, 2
    return ids


def random_sae(
    d_in: int, hook: str, architecture: str = "standard", *, hook_out: str | None = None, seed: int = 0, **metadata
) -> SAE:
    """A SAELens dictionary with random weights that leaves a large error."""
    config = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": 64,
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "metadata": {"hook_name": hook, **({"hook_name_out": hook_out} if hook_out else {}), **metadata},
    }
    if "transcoder" in architecture:
        config["d_out"] = WIDTH
    if architecture == "topk":
        config["k"] = 8
    if architecture == "temporal":
        config |= {"n_heads": 2, "bottleneck_factor": 4, "kval_topk": 8, "n_attn_layers": 1}
    sae = SAE.from_dict(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / max(weight.shape[-1], 8) ** 0.5)
    return sae.eval().requires_grad_(False)


def word_tokenizer(*, adds_bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    """One token a word, w3 to w100, whose ids are their numbers; pads on the side that lm_eval asks for."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


def words(count: int, *, seed: int) -> str:
    """A text of `count` random words."""
    ids = torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{i}" for i in ids.tolist())
