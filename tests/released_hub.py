"""The repositories that scripts/reproduce_released.py asks the hub for, rebuilt small: names, layouts and keys are the
real ones, weights are random. Only the dictionary of Gemma Scope has its real shape, which its loader knows by heart.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import tokenizers
import torch
import transformers
from conftest import HUB
from releases import CONFIG_OF_2024, random, save

WIDTH, LATENTS, LATENTS_32 = 64, 128, 512
GEMMA_WIDTH, GEMMA_LATENTS = 2304, 16384
BYTES = 256
PROSE = (
    "The ship had left the harbour before dawn, and nobody on the pier could say where it was bound.",
    "In 1887 the town built a second bridge; the first had been swept away by the flood of the year before.",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))",
    "Bread is made of flour, water, salt and yeast. Knead the dough for ten minutes, then let it rise for an hour.",
)


def byte_tokenizer(
    specials: tuple[str, ...], *, bos: str, eos: str, adds_bos: bool
) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, behind the special ones."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE({name: i for i, name in enumerate([*specials, *alphabet])}, merges=[])
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(list(specials))
    if adds_bos:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, specials.index(bos))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token=eos)


def _save_model(folder: Path, config: transformers.PretrainedConfig, dtype: torch.dtype = torch.float32) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)


def gpt2(folder: Path) -> None:
    """With GPT-2's own tokenizer."""
    shutil.copytree(HUB / "root" / "models" / "gpt2-tokenizer", folder)
    _save_model(folder, transformers.GPT2Config(n_embd=WIDTH, n_head=2))


def pythia(folder: Path) -> None:
    names = ("<|endoftext|>", "<|padding|>")
    byte_tokenizer(names, bos=names[0], eos=names[0], adds_bos=False).save_pretrained(folder)
    config = transformers.GPTNeoXConfig(
        vocab_size=BYTES + len(names), hidden_size=WIDTH, num_hidden_layers=6, num_attention_heads=2,
        intermediate_size=2 * WIDTH, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    _save_model(folder, config)


def gemma(folder: Path) -> None:
    names = ("<pad>", "<eos>", "<bos>")
    byte_tokenizer(names, bos="<bos>", eos="<eos>", adds_bos=True).save_pretrained(folder)
    config = transformers.Gemma2Config(
        vocab_size=BYTES + len(names), hidden_size=GEMMA_WIDTH, intermediate_size=16, num_hidden_layers=26,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
    )  # fmt: skip
    _save_model(folder, config, torch.bfloat16)


def llama(folder: Path) -> None:
    names = ("<|begin_of_text|>", "<|end_of_text|>")
    byte_tokenizer(names, bos=names[0], eos=names[1], adds_bos=True).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=BYTES + len(names), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=32,
        num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    _save_model(folder, config, torch.bfloat16)


def _weights(width: int, latents: int) -> dict[str, torch.Tensor]:
    """In SAELens' layout, the decoder the encoder's transpose: a poor autoencoder, but one."""
    encoder = random(width, latents, seed=1, scale=width**-0.5)
    return {
        "W_enc": encoder, "W_dec": encoder.T.contiguous(),
        "b_enc": torch.zeros(latents), "b_dec": random(width, seed=4, scale=0.1),
    }  # fmt: skip


def _of_saelens(folder: str, hook: str, model: str, **changes: object) -> dict:
    """A folder in SAELens' format of 2024."""
    layer = int(hook.split(".")[1])
    config = {**CONFIG_OF_2024, "hook_point": hook, "hook_point_layer": layer, "model_name": model}
    config |= {"d_in": WIDTH, "d_sae": LATENTS, **changes}
    return {
        f"{folder}/cfg.json": config,
        f"{folder}/sae_weights.safetensors": _weights(WIDTH, LATENTS),
        f"{folder}/sparsity.safetensors": {"sparsity": torch.zeros(LATENTS)},
    }


TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 32}, "normalize_activations": "layer_norm"}


def _llama_scope(times: int, latents: int) -> dict:
    name = f"Llama3_1-8B-Base-L15R-{times}x"
    w = _weights(WIDTH, latents)
    norm = WIDTH**0.5
    config = {
        "d_model": WIDTH, "d_sae": latents, "hook_point_in": "blocks.15.hook_resid_post", "jump_relu_threshold": 0.5,
        "dataset_average_activation_norm": {"in": norm, "out": norm}, "norm_activation": "dataset-wise",
        "act_fn": "jumprelu", "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    tensors["decoder.bias"] = w["b_dec"]
    return {
        f"{name}/hyperparams.json": config,
        f"{name}/checkpoints/final.safetensors": {key: tensor.bfloat16() for key, tensor in tensors.items()},
    }


def _gemma_scope(folder: Path) -> None:
    """Compressed, and all but the first latents dead, so that 300 MB fit into few."""
    alive = 256
    w = {name: tensor.numpy() for name, tensor in _weights(GEMMA_WIDTH, alive).items()}
    whole = {
        "W_enc": np.zeros((GEMMA_WIDTH, GEMMA_LATENTS), np.float32),
        "W_dec": np.zeros((GEMMA_LATENTS, GEMMA_WIDTH), np.float32),
        "b_enc": np.full(GEMMA_LATENTS, -1, np.float32),
        "b_dec": w["b_dec"],
        "threshold": np.full(GEMMA_LATENTS, 0.1, np.float32),
    }
    whole["W_enc"][:, :alive], whole["W_dec"][:alive], whole["b_enc"][:alive] = w["W_enc"], w["W_dec"], w["b_enc"]
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "params.npz", **whole)


def _data_set(folder: Path, rows: dict[str, list], file: str) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / file)


def _data_sets(root: Path) -> None:
    """In the real ones' columns, with texts of our own; MMLU is the real one."""
    texts = ["\n\n".join(PROSE[i:] + PROSE[:i]) for i in range(len(PROSE))]
    _data_set(root / "Elriggs/openwebtext-100k", {"text": texts}, "data/train-00000-of-00001.parquet")
    of_pile = {
        "text": texts,
        "meta": [{"pile_set_name": name} for name in ("Pile-CC", "Wikipedia (en)", "Github", "Books3")],
    }
    _data_set(root / "NeelNanda/pile-10k", of_pile, "data/train-00000-of-00001.parquet")
    endings = ["bakes a loaf.", "sails away.", "builds a bridge.", "writes a line."]
    stories = {
        "ind": [0, 1], "activity_label": ["Baking bread"] * 2, "ctx_a": ["A woman kneads dough."] * 2,
        "ctx_b": ["she"] * 2, "ctx": ["A woman kneads dough. she"] * 2, "endings": [endings] * 2,
        "source_id": ["a", "b"], "split": ["x"] * 2, "split_type": ["indomain"] * 2, "label": ["0", "0"],
    }  # fmt: skip
    for split in ("train", "validation"):
        _data_set(root / "Rowan/hellaswag", stories, f"data/{split}-00000-of-00001.parquet")
    questions = ["What is bread made of?", "Where do ships leave from?"]
    answers = [["Flour, water, salt and yeast."], ["A harbour."]]
    wrong = [["Stones."], ["A kitchen."]]
    written = {
        "type": ["Adversarial"] * 2, "category": ["Cooking", "Travel"], "question": questions,
        "best_answer": [right[0] for right in answers], "correct_answers": answers, "incorrect_answers": wrong,
        "source": ["none"] * 2,
    }  # fmt: skip
    targets = [{"choices": [*a, *b], "labels": [1, 0]} for a, b in zip(answers, wrong, strict=True)]
    folder = root / "truthfulqa/truthful_qa"
    _data_set(folder, written, "generation/validation-00000-of-00001.parquet")
    chosen = {"question": questions, "mc1_targets": targets, "mc2_targets": targets}
    _data_set(folder, chosen, "multiple_choice/validation-00000-of-00001.parquet")
    configurations = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: validation\n    path: {name}/validation-*\n"
        for name in ("generation", "multiple_choice")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    (root / "cais").mkdir()
    (root / "cais" / "mmlu").symlink_to(HUB / "root" / "datasets" / "cais" / "mmlu", target_is_directory=True)


def write(root: Path) -> None:
    """Everything below the folder that a hub is to serve."""
    models = root / "models"
    for name, writer in (
        ("gpt2", gpt2),
        ("EleutherAI/pythia-70m-deduped", pythia),
        ("google/gemma-2-2b", gemma),
        ("meta-llama/Llama-3.1-8B", llama),
    ):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        writer(models / name)
    hook = "blocks.8.hook_resid_pre"
    save(models / "jbloom/GPT2-Small-SAEs-Reformatted", _of_saelens(hook, hook, "gpt2-small"))
    for layer in (6, 11):
        files = _of_saelens(f"v5_128k_layer_{layer}", f"blocks.{layer}.hook_resid_mid", "gpt2-small", **TOPK)
        save(models / "jbloom/GPT2-Small-OAI-v5-128k-resid-mid-SAEs", files)
    files = _of_saelens("3-mlp-sm", "blocks.3.hook_mlp_out", "pythia-70m-deduped")
    save(models / "ctigges/pythia-70m-deduped__mlp-sm_processed", files)
    _gemma_scope(models / "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82")
    save(models / "fnlp/Llama3_1-8B-Base-LXR-8x", _llama_scope(8, LATENTS))
    save(models / "fnlp/Llama3_1-8B-Base-LXR-32x", _llama_scope(32, LATENTS_32))
    _data_sets(root / "datasets")
