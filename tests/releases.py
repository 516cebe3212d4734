"""Releases rebuilt small: the real repositories' names, paths, file formats and keys, with random weights.

Beside each stands its reconstruction in plain torch from these files' own tensors, by the authors' formula.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import relu

D, F = 32, 64
# SAELens' converters take widths from names or constants: the registry's overrides make them small.
SMALL = {"d_in": D, "d_sae": F}
Files = Mapping[str, Any]


@dataclass(frozen=True)
class Release:
    """`write` gives the files of a repository, by path: dicts of tensors, or configurations.

    `plain` maps activations (batch, positions, D) and those files to a reconstruction and to latents.
    """

    spec: str
    repository: str
    write: Callable[[], Files]
    plain: Callable[[Files, Tensor], tuple[Tensor, Tensor]]
    converter: str
    overrides: dict[str, Any] = field(default_factory=lambda: dict(SMALL))
    prepend_bos: bool | None = None
    processing: str | None = None  # who says how the model was loaded


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(*, norm: float = 1.0) -> dict[str, Tensor]:
    """In SAELens' layout, decoder rows of about the given norm."""
    return {
        "W_enc": random(D, F, seed=1, scale=D**-0.5),
        "W_dec": random(F, D, seed=2, scale=norm * D**-0.5),
        "b_enc": random(F, seed=3, scale=0.3),
        "b_dec": random(D, seed=4, scale=0.3),
    }


def save(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, path)
        elif path.suffix == ".npz":
            np.savez(path, **{key: tensor.numpy() for key, tensor in content.items()})
        elif path.suffix in (".pt", ".pth"):
            torch.save(content, path)
        else:
            path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content))


def renamed(tensors: Mapping[str, Tensor], names: str, transpose: str = "") -> dict[str, Tensor]:
    """`tensors` under other names, as in "W_enc=encoder.weight"; those in `transpose` turned."""
    pairs = [pair.split("=") for pair in names.split()]
    return {new: tensors[old].T.contiguous() if old in transpose.split() else tensors[old] for old, new in pairs}


def jump(pre: Tensor, threshold: Tensor | float) -> Tensor:
    return relu(pre) * (pre > threshold)


def largest(pre: Tensor, k: int) -> Tensor:
    top = relu(pre).topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, top.indices, top.values)


# -- SAELens' own format, as of January 2024 ------------------------------------------------------------------

JB = "blocks.8.hook_resid_pre"
# The keys of the file of gpt2-small-res-jb, with a narrower dictionary.
CONFIG_OF_2024 = {
    "model_name": "gpt2-small", "hook_point": JB, "hook_point_layer": 8, "hook_point_head_index": None,
    "dataset_path": "Skylion007/openwebtext", "is_dataset_tokenized": False, "context_size": 128,
    "use_cached_activations": False, "cached_activations_path": "activations/gpt2-small", "d_in": D,
    "n_batches_in_buffer": 128, "total_training_tokens": 300000000, "store_batch_size": 32, "device": "mps",
    "seed": 42, "dtype": "torch.float32", "b_dec_init_method": "geometric_median", "expansion_factor": 2,
    "from_pretrained_path": None, "l1_coefficient": 8e-05, "lr": 0.0004, "lr_scheduler_name": None,
    "lr_warm_up_steps": 5000, "train_batch_size": 4096, "use_ghost_grads": False, "feature_sampling_window": 1000,
    "feature_sampling_method": None, "resample_batches": 1028, "feature_reinit_scale": 0.2,
    "dead_feature_window": 5000, "dead_feature_threshold": 1e-08, "log_to_wandb": True, "wandb_project": "x",
    "wandb_entity": None, "wandb_log_frequency": 100, "n_checkpoints": 10, "checkpoint_path": "checkpoints/x",
    "d_sae": F, "tokens_per_buffer": 67108864, "run_name": "x",
}  # fmt: skip


def of_2024(folder: str = JB, **changes: Any) -> Files:
    return {
        f"{folder}/cfg.json": {**CONFIG_OF_2024, **changes},
        f"{folder}/sae_weights.safetensors": {**weights(), "scaling_factor": torch.ones(F)},
        f"{folder}/sparsity.safetensors": {"sparsity": torch.zeros(F)},
    }


def standard(w: Mapping[str, Tensor], x: Tensor, *, centred: bool = True) -> tuple[Tensor, Tensor]:
    acts = relu((x - w["b_dec"] if centred else x) @ w["W_enc"] + w["b_enc"])
    return acts @ w["W_dec"] + w["b_dec"], acts


# -- other formats --------------------------------------------------------------------------------------------

HOOK_Z = "gpt2-small_L0_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9"


def hook_z() -> Files:
    config = {"act_size": D, "dict_size": F, "act_name": "blocks.0.attn.hook_z", "model_name": "gpt2-small"}
    return {f"{HOOK_Z}.pt": weights(), f"{HOOK_Z}_cfg.json": config}


def gemma_scope(folder: str, **changes: Tensor) -> Files:
    return {f"{folder}/params.npz": {**weights(norm=0.7), "threshold": random(F, seed=5).abs() / 2, **changes}}


def gemma_jump(w: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    acts = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    return acts @ w["W_dec"] + w["b_dec"], acts


def embedding(files: Files, x: Tensor) -> tuple[Tensor, Tensor]:
    # Trained on embeddings before the model scales them; `x` is scaled.
    (w,) = files.values()
    out, acts = gemma_jump(w, x / D**0.5)
    return out * D**0.5, acts


def gemma_scope_2(folder: str, **more: Tensor) -> dict[str, Any]:
    w = renamed(weights(norm=0.7), "W_enc=w_enc W_dec=w_dec b_enc=b_enc b_dec=b_dec")
    return {f"{folder}/params.safetensors": {**w, "threshold": random(F, seed=5).abs() / 2, **more}}


def gemma_2_plain(files: Files, x: Tensor) -> tuple[Tensor, Tensor]:
    w = next(content for name, content in files.items() if name.endswith(".safetensors"))
    acts = jump(x @ w["w_enc"] + w["b_enc"], w["threshold"])
    skip = x @ w["affine_skip_connection"] if "affine_skip_connection" in w else 0
    return acts @ w["w_dec"] + w["b_dec"] + skip, acts


TRANSCODER_270M = "transcoder/layer_15_width_262k_l0_big_affine"
CONFIG_OF_TRANSCODER = {
    "architecture": "jump_relu", "affine_connection": True, "model_name": "gemma-v3-270m-pt",
    "hf_hook_point_in": "model.layers.15.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.15.post_feedforward_layernorm.output",
}  # fmt: skip


def qwen_scope() -> Files:
    return {"config.json": {"k": 50}, "layer0.sae.pt": renamed(weights(), SAME, transpose="W_enc W_dec")}


SAME = "W_enc=W_enc W_dec=W_dec b_enc=b_enc b_dec=b_dec"
LINEAR = "W_enc=encoder.weight b_enc=encoder.bias W_dec=decoder.weight b_dec=decoder.bias"
LLAMA = "Llama3_1-8B-Base-L0R-8x"
LLAMA_FACTOR = 58.935251798561154  # of the registry, which is sqrt(d) / norm
R1 = "800M-Slimpajama-0-OpenR1-Math-220k/L0R"
R1_FACTOR = 53.52995401997436


def llama_scope() -> Files:
    config = {
        "d_model": D, "d_sae": F, "hook_point_in": "blocks.0.hook_resid_post", "jump_relu_threshold": 0.01,
        "dataset_average_activation_norm": {"in": D**0.5 / LLAMA_FACTOR, "out": D**0.5 / LLAMA_FACTOR},
        "norm_activation": "dataset-wise", "act_fn": "jumprelu", "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    tensors = renamed(weights(norm=1.54), LINEAR, transpose="W_enc W_dec")
    return {f"{LLAMA}/hyperparams.json": config, f"{LLAMA}/checkpoints/final.safetensors": tensors}


def scaled_jump(w: Mapping[str, Tensor], x: Tensor, factor: float, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    """Jumps where pre-activation times the norm of the decoder's column exceeds `threshold`."""
    pre = x * factor @ w["encoder.weight"].T + w["encoder.bias"]
    acts = relu(pre) * (pre * w["decoder.weight"].norm(dim=0) > threshold)
    return (acts @ w["decoder.weight"].T + w["decoder.bias"]) / factor, acts


def llama_plain(files: Files, x: Tensor) -> tuple[Tensor, Tensor]:
    config, w = files.values()
    factor = D**0.5 / config["dataset_average_activation_norm"]["in"]
    return scaled_jump(w, x, factor, config["jump_relu_threshold"] * factor)


def r1_distill() -> Files:
    config = {"d_model": D, "expansion_factor": F // D, "hook_point_in": "blocks.0.hook_resid_post"}
    tensors = renamed(weights(norm=1.54), LINEAR, transpose="W_enc W_dec")
    tensors["log_jumprelu_threshold"] = random(F, seed=6, scale=0.5)
    config["sparsity_include_decoder_norm"] = True
    return {f"{R1}/config.json": config, f"{R1}/sae_weights.safetensors": tensors}


def r1_plain(files: Files, x: Tensor) -> tuple[Tensor, Tensor]:
    _, w = files.values()
    return scaled_jump(w, x, R1_FACTOR, w["log_jumprelu_threshold"].exp())


def learned(folder: str, kind: str, tensors: Files, model: str, **more: Any) -> Files:
    """dictionary_learning's two files."""
    trainer = {"layer": 3, "dict_class": kind, "activation_dim": D, "dict_size": F, "lm_name": model, **more}
    return {f"{folder}/config.json": {"trainer": trainer, "buffer": {"ctx_len": 128}}, f"{folder}/ae.pt": tensors}


PYTHIA = "pythia70m_sweep_{}_ctx128_0730/resid_post_layer_3/trainer_{}"
DEDUPED = "EleutherAI/pythia-70m-deduped"
AE = "W_enc=encoder.weight b_enc=encoder.bias W_dec=decoder.weight b_dec={}"


def autoencoder(bias: str) -> dict[str, Tensor]:
    return renamed(weights(), AE.format(bias), transpose="W_enc W_dec")


def gated() -> dict[str, Tensor]:
    w = autoencoder("decoder_bias")
    del w["encoder.bias"]
    return {
        **w,
        **{name: random(F, seed=7 + i, scale=0.3) for i, name in enumerate(("mag_bias", "gate_bias", "r_mag"))},
    }


def learned_plain(files: Files, x: Tensor) -> tuple[Tensor, Tensor]:
    config, w = files.values()
    kind = config["trainer"]["dict_class"]
    if kind == "JumpReluAutoEncoder":  # the one that does not subtract its bias
        return gemma_jump(w, x)
    bias = next(w[name] for name in ("b_dec", "bias", "decoder_bias") if name in w)
    pre = (x - bias) @ w["encoder.weight"].T + w.get("encoder.bias", 0)
    if kind == "GatedAutoEncoder":
        acts = (pre + w["gate_bias"] > 0) * relu(pre * w["r_mag"].exp() + w["mag_bias"])
    elif kind == "AutoEncoderTopK":
        acts = largest(pre, config["trainer"]["k"])
    else:
        acts = jump(pre, w.get("threshold", 0.0))
    return acts @ w["decoder.weight"].T + bias, acts


def qwen3_transcoder() -> Files:
    w = renamed(weights(), SAME, transpose="W_enc")
    values = {name: {"value": size} for name, size in (("d_model", D), ("d_feature", F), ("batch_size", 1024))}
    return {"wanb-config.yaml": values, "config.yaml": {"model_name": "Qwen/Qwen3-4B"}, "layer_0.safetensors": w}


def transcoder_plain(files: Files, x: Tensor) -> tuple[Tensor, Tensor]:
    w = files["layer_0.safetensors"]
    return standard({**w, "W_enc": w["W_enc"].T}, x, centred=False)


def cross_layer() -> Files:
    hooks = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    w = weights()
    encoder = {"W_enc_0": w["W_enc"].T, "b_enc_0": w["b_enc"], "b_dec_0": w["b_dec"]}
    decoder = {"W_dec_0": random(F, 3, D, seed=2, scale=D**-0.5)}
    return {
        "config.yaml": {"model_name": "google/gemma-2-2b", **hooks},
        "W_enc_0.safetensors": encoder,
        "W_dec_0.safetensors": decoder,
    }


HEADS, NARROWING, RESCALE, KEPT = 2, 4, 0.029, 8
TEMPORAL = "llama-3.1-8B/layer_15/temporal"


def temporal() -> Files:
    sae = {"exp_factor": F / D, "n_heads": HEADS, "n_attn_layers": 1, "bottleneck_factor": NARROWING}
    sae |= {"sae_diff_type": "topk", "kval_topk": KEPT, "tied_weights": True, "scaling_factor": RESCALE}
    tensors = {"D": random(F, D, seed=2, scale=D**-0.5), "b": random(D, seed=4, scale=0.3)}
    for i, (name, out) in enumerate(
        (("k_ctx", F // NARROWING), ("q_target", F // NARROWING), ("v_ctx", F), ("c_proj", F))
    ):
        tensors[f"attn_layers.0.{name}.weight"] = random(out, F, seed=20 + i, scale=F**-0.5)
        tensors[f"attn_layers.0.{name}.bias"] = random(out, seed=30 + i, scale=0.1)
    conf = {"llm": {"dimin": D}, "sae": sae, "data": {"dtype": "float32"}}
    return {f"{TEMPORAL}/conf.yaml": conf, f"{TEMPORAL}/latest_ckpt.safetensors": tensors}


def temporal_plain(files: Files, x: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted from what came before by one layer of attention, and the rest by a topk SAE with tied weights."""
    _, w = files.values()
    x = x * RESCALE - w["b"]

    def linear(name: str, z: Tensor) -> Tensor:
        return z @ w[f"attn_layers.0.{name}.weight"].T + w[f"attn_layers.0.{name}.bias"]

    def heads(z: Tensor) -> Tensor:
        return z.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    codes = relu(x / (4 * D) @ w["D"].T)
    before = torch.cat([torch.zeros_like(codes[:, :1]), codes[:, :-1]], dim=1)
    keys, queries = heads(linear("k_ctx", before)), heads(linear("q_target", codes))
    scores = queries @ keys.mT / keys.shape[-1] ** 0.5
    future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    seen = scores.masked_fill(future, -torch.inf).softmax(-1) @ heads(linear("v_ctx", before))
    predicted = relu(linear("c_proj", seen.transpose(1, 2).flatten(-2)))
    direction = predicted @ w["D"]
    scale = (direction * x).sum(-1, keepdim=True) / (direction.norm(dim=-1, keepdim=True) + 1e-6).pow(2)
    novel = largest((x - scale * direction) / (4 * D) @ w["D"].T, KEPT)
    return ((novel + scale * predicted) @ w["D"] + w["b"]) / RESCALE, novel


def sparsify() -> Files:
    config = {"activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": F, "k": KEPT}
    config |= {"multi_topk": False, "skip_connection": True, "transcode": True, "d_in": D}
    w = renamed(weights(), "W_enc=encoder.weight b_enc=encoder.bias W_dec=W_dec b_dec=b_dec", transpose="W_enc")
    w["W_skip"] = random(D, D, seed=8, scale=D**-0.5)
    return {"config.json": {"model": DEDUPED}, "layers.3.mlp/cfg.json": config, "layers.3.mlp/sae.safetensors": w}


def sparsify_plain(files: Files, x: Tensor) -> tuple[Tensor, Tensor]:
    w = files["layers.3.mlp/sae.safetensors"]
    acts = largest(x @ w["encoder.weight"].T + w["encoder.bias"], KEPT)
    return acts @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T, acts


LEARNING = "github.com/saprmarks/dictionary_learning, buffer.py"
CENTRED = "SAELens' registry"
GEMMA_2B = "google/gemma-scope-2b-pt-"


def pythia(sweep: str, number: int, write: Callable[[], Files]) -> Release:
    spec = f"sae_bench_pythia70m_sweep_{sweep}_ctx128_0730#blocks.3.hook_resid_post__trainer_{number}"
    return Release(spec, "canrager/lm_sae", write, learned_plain, "dictionary_learning_1", {}, processing=LEARNING)


def first(files: Files) -> Any:
    return next(iter(files.values()))


RELEASES = (
    Release(f"gpt2-small-res-jb#{JB}", "jbloom/GPT2-Small-SAEs-Reformatted", of_2024,
            lambda f, x: standard(f[f"{JB}/sae_weights.safetensors"], x), "sae_lens", {}, processing=CENTRED),
    Release("gpt2-small-res_sce-ajt#blocks.2.hook_resid_pre", "neuronpedia/gpt2-small__res_sce-ajt",
            lambda: of_2024("2-res_sce-ajt", model_name="gpt2"),
            lambda f, x: standard(f["2-res_sce-ajt/sae_weights.safetensors"], x),
            "sae_lens", {}, processing="github.com/ApolloResearch/e2e_sae, e2e_sae/loader.py"),
    Release("gpt2-small-hook-z-kk#blocks.0.hook_z", "ckkissane/attn-saes-gpt2-small-all-layers", hook_z,
            lambda f, x: standard(first(f), x), "connor_rob_hook_z", {}, prepend_bos=True,
            processing="github.com/ckkissane/attention-output-saes, train.py and common/utils.py"),
    Release("gemma-scope-2b-pt-att#layer_0/width_16k/average_l0_104", f"{GEMMA_2B}att",
            lambda: gemma_scope("layer_0/width_16k/average_l0_104"), lambda f, x: gemma_jump(first(f), x), "gemma_2"),
    Release("gemma-scope-2b-pt-res#embedding/width_4k/average_l0_6", f"{GEMMA_2B}res",
            lambda: gemma_scope("embedding/width_4k/average_l0_6"), embedding, "gemma_2"),
    Release("gemma-scope-2b-pt-transcoders#layer_0/width_16k/average_l0_76", f"{GEMMA_2B}transcoders",
            lambda: gemma_scope("layer_0/width_16k/average_l0_76"), lambda f, x: gemma_jump(first(f), x),
            "gemma_2_transcoder", {**SMALL, "d_out": D}),
    Release("gemma-scope-2-270m-pt-res#layer_12_width_16k_l0_big", "google/gemma-scope-2-270m-pt",
            lambda: gemma_scope_2("resid_post/layer_12_width_16k_l0_big"), gemma_2_plain, "gemma_3", {}),
    Release(f"gemma-scope-2-270m-pt-transcoders#{TRANSCODER_270M}", "google/gemma-scope-2-270m-pt",
            lambda: {f"{TRANSCODER_270M}/config.json": CONFIG_OF_TRANSCODER, **gemma_scope_2(
                TRANSCODER_270M, affine_skip_connection=random(D, D, seed=9, scale=D**-0.5))},
            gemma_2_plain, "gemma_3", {}),
    Release("qwen-scope-3-1.7b-base-w32k-l50#layer0", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", qwen_scope,
            lambda f, x: scored(f, x, 50), "qwen_scope"),
    Release("deepseek-r1-distill-llama-8b-qresearch#blocks.19.hook_resid_post",
            "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
            lambda: {"DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt": renamed(weights(), LINEAR, "W_enc W_dec")},
            lambda f, x: linear_plain(first(f), x, "encoder", "decoder"), "deepseek_r1"),
    Release("goodfire-llama-3.1-8b-instruct#layer_19", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
            lambda: {"Llama-3.1-8B-Instruct-SAE-l19.pth": {name.replace("coder.", "coder_linear."): tensor
                     for name, tensor in renamed(weights(), LINEAR, "W_enc W_dec").items()}},
            lambda f, x: linear_plain(first(f), x, "encoder_linear", "decoder_linear"), "goodfire"),
    Release("llama_scope_lxr_8x#l0r_8x", "fnlp/Llama3_1-8B-Base-LXR-8x", llama_scope, llama_plain, "llama_scope", {}),
    Release("llama_scope_r1_distill#l0r_800m_slimpajama", "fnlp/Llama-Scope-R1-Distill", r1_distill, r1_plain,
            "llama_scope_r1_distill", {}),
    pythia("panneal", 16, lambda: learned(PYTHIA.format("panneal", 16), "AutoEncoder", autoencoder("bias"), DEDUPED)),
    pythia("gated", 0, lambda: learned(PYTHIA.format("gated", 0), "GatedAutoEncoder", gated(), DEDUPED)),
    pythia("topk", 0, lambda: learned(PYTHIA.format("topk", 0), "AutoEncoderTopK",
                                      {**autoencoder("b_dec"), "threshold": torch.tensor(9.0)}, DEDUPED, k=KEPT)),
    Release("gpt-oss-20b-andyrdt#resid_post_layer_3_trainer_0", "andyrdt/saes-gpt-oss-20b",
            lambda: learned("resid_post_layer_3/trainer_0", "BatchTopKSAE",
                            {**autoencoder("b_dec"), "threshold": torch.tensor(0.4)}, "openai/gpt-oss-20b", k=KEPT),
            learned_plain, "dictionary_learning_1", {}),
    Release("sae_bench_gemma-2-2b_topk_width-2pow12_date-1109#blocks.12.hook_resid_post__trainer_0",
            "canrager/saebench_gemma-2-2b_width-2pow12_date-1109",
            lambda: learned("gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_12/trainer_0",
                            "JumpReluAutoEncoder", {**weights(), "threshold": random(F, seed=5).abs() / 2},
                            "google/gemma-2-2b", layer=12),
            learned_plain, "dictionary_learning_1", {}, processing=LEARNING),
    Release("mwhanna-qwen3-4b-transcoders#layer_0", "mwhanna/qwen3-4b-transcoders", qwen3_transcoder,
            transcoder_plain, "mwhanna_transcoder", {}, processing="SAELens' converter"),
    Release("temporal-sae-llama-3.1-8b#blocks.15.hook_resid_post", "canrager/temporalSAEs", temporal, temporal_plain,
            "temporal", {}),
    Release("sparsify:EleutherAI/skip-transcoder-pythia-70m#layers.3.mlp", "EleutherAI/skip-transcoder-pythia-70m",
            sparsify, sparsify_plain, "sparsify", {},
            processing="sparsify trains on the Hugging Face model itself"),
)  # fmt: skip


def scored(files: Files, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    w = files["layer0.sae.pt"]
    acts = largest(x @ w["W_enc"].T + w["b_enc"], k)
    return acts @ w["W_dec"].T + w["b_dec"], acts


def linear_plain(w: Mapping[str, Tensor], x: Tensor, encoder: str, decoder: str) -> tuple[Tensor, Tensor]:
    acts = relu(x @ w[f"{encoder}.weight"].T + w[f"{encoder}.bias"])
    return acts @ w[f"{decoder}.weight"].T + w[f"{decoder}.bias"], acts


# One layer of it is no replacement for anything: SAELens sums its decoders.
CROSS_LAYER_SPEC, CROSS_LAYER_REPOSITORY = "mntss-gemma-2-2b-2.5m-clt-as-per-layer#layer_0", "mntss/clt-gemma-2-2b-2.5M"


def activations() -> Tensor:
    return random(2, 6, D, seed=10, scale=2.0)


def load_all(out: Path, specs: list[str]) -> None:
    """Load the releases of these specs from the hub that the environment names, and write down what each one is."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from sae_lm_eval.dictionaries.loading import load_dictionary
    from sae_lm_eval.errors import UserError

    registry, said, x = get_pretrained_saes_directory(), {}, activations()
    for release in RELEASES:
        entry = registry.get(release.spec.partition("#")[0])
        if entry is not None and release.overrides:
            entry.config_overrides = {**(entry.config_overrides or {}), **release.overrides}
    for spec in specs:
        try:
            dictionary = load_dictionary(spec)
        except UserError as error:
            said[spec] = {"refused": str(error)}
            continue
        keep = ("prepend_bos", "processing", "processing_source", "not_stated", "sequential", "remarks", "model_names")
        said[spec] = {name: getattr(dictionary, name) for name in (*keep, "hook_in", "hook_out")}
        said[spec] |= {"out": dictionary.reconstruct(x), "acts": dictionary.encode(x)}
    torch.save(said, out)


if __name__ == "__main__":
    import sys

    load_all(Path(sys.argv[1]), sys.argv[2:])
