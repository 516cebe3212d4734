"""Dictionaries in Llamascopium's layout, against the formula in plain torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import hub_environment_of, serving
from models import WIDTH, random_model, word_tokenizer
from safetensors.torch import load_file, save_file

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.dictionaries.loading import load_dictionary

LATENTS = 48
RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_post", "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
CONFIG = {
    "hook_point_in": RESID,
    "hook_point_out": RESID,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.3,
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "use_decoder_bias": True,
    "dataset_average_activation_norm": {"in": 5.5, "out": 5.5},
    "d_model": WIDTH,
    "expansion_factor": 8,
    "dtype": "torch.bfloat16",
}


def saved(folder: Path, **said) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (LATENTS, WIDTH), "encoder.bias": (LATENTS,)}
    shapes |= {"decoder.weight": (WIDTH, LATENTS), "decoder.bias": (WIDTH,)}
    tensors = {name: torch.randn(shape, generator=rng) / 4 for name, shape in shapes.items()}
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps({**CONFIG, **said}))
    return folder


def by_formula(folder: Path, x: torch.Tensor) -> torch.Tensor:
    """As the library does for inference: norms are folded, then decoders are given unit norm, then latents compared."""
    w, said = (
        load_file(folder / "checkpoints" / "final.safetensors"),
        json.loads((folder / "hyperparams.json").read_text()),
    )
    encoder, decoder, before, bias = (
        w[f"{n}"] for n in ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias")
    )
    if said["apply_decoder_bias_to_pre_encoder"]:
        before = before - encoder @ bias
    if said["norm_activation"] == "dataset-wise":
        norms = said["dataset_average_activation_norm"]
        factor_in, factor_out = (WIDTH**0.5 / norms[way] for way in ("in", "out"))
        before, bias, decoder = before / factor_in, bias / factor_out, decoder * factor_in / factor_out
    if said["sparsity_include_decoder_norm"]:
        norm = decoder.norm(dim=0)
        encoder, before, decoder = encoder * norm[:, None], before * norm, decoder / norm
    latents = x @ encoder.T + before
    threshold = 0 if said["act_fn"] == "relu" else said["jump_relu_threshold"]
    return torch.where(latents > threshold, latents, 0) @ decoder.T + bias


KINDS = {
    "released": {},
    "a transcoder": {
        "hook_point_in": MLP_IN,
        "hook_point_out": MLP_OUT,
        "dataset_average_activation_norm": {"in": 5.5, "out": 0.9},
    },
    "norms that do not count": {"sparsity_include_decoder_norm": False},
    "a bias that is read": {"apply_decoder_bias_to_pre_encoder": True},
    "folded already": {"norm_activation": "inference"},
    "relu": {"act_fn": "relu"},
    "topk with a threshold": {"act_fn": "topk", "top_k": 50},
}


@pytest.mark.parametrize("kind", KINDS)
def test_by_the_formula(tmp_path, kind):
    folder = saved(tmp_path / "scope", **KINDS[kind])
    dictionary = load_dictionary(f"llama_scope:{folder}")
    x = 2 * torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = by_formula(folder, x)
    torch.testing.assert_close(dictionary.reconstruct(x), expected, atol=1e-4, rtol=1e-4)
    assert dictionary.hook_in == KINDS[kind].get("hook_point_in", RESID)
    lm = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=f"llama_scope:{folder}")
    assert lm._model_call(torch.tensor([[5, 6, 7]])).isfinite().all()


def rewritten(folder: Path, change) -> None:
    file = folder / "checkpoints" / "final.safetensors"
    save_file(change(load_file(file)), file)


BROKEN = {
    "norms of tokens": ({"norm_activation": "token-wise"}, lambda f: None, "norm_activation 'token-wise'"),
    "a gated encoder": ({"use_glu_encoder": True}, lambda f: None, "gated encoders are not read"),
    "an activation that is none": ({"act_fn": "gelu"}, lambda f: None, "act_fn 'gelu'"),
    "topk alone": (
        {"act_fn": "topk", "jump_relu_threshold": 0.0},
        lambda f: None,
        "topk without a jump_relu_threshold",
    ),
    "no norms": (
        {"dataset_average_activation_norm": {"in": 5.5}},
        lambda f: None,
        "no dataset_average_activation_norm",
    ),
    "a norm of 0": ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, lambda f: None, "above 0"),
    "a hook that is a number": ({"hook_point_in": 3}, lambda f: None, "hook_point_in"),
    "no weights": (
        {},
        lambda f: (f / "checkpoints" / "final.safetensors").unlink(),
        "no checkpoints/final.safetensors",
    ),
    "a tensor is missing": (
        {},
        lambda f: rewritten(f, lambda t: {n: tensor for n, tensor in t.items() if n != "encoder.bias"}),
        "no tensor 'encoder.bias'",
    ),
    "another width": (
        {},
        lambda f: rewritten(f, lambda t: {**t, "encoder.bias": torch.zeros(3)}),
        "do not fit each other",
    ),
    "no matrix": ({}, lambda f: rewritten(f, lambda t: {**t, "encoder.weight": torch.zeros(3)}), "is no matrix"),
    "no JSON": ({}, lambda f: (f / "hyperparams.json").write_text("{"), "hyperparams.json"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_get_a_sentence(tmp_path, what):
    said, change, sentence = BROKEN[what]
    folder = saved(tmp_path / "scope", **said)
    change(folder)
    with pytest.raises(UserError, match=sentence):
        load_dictionary(f"llama_scope:{folder}")


def test_without_its_loader_the_message_names_it(tmp_path):
    with pytest.raises(UserError, match="is in the format of Llama Scope: name it llama_scope:"):
        load_dictionary(str(saved(tmp_path / "scope")))


def test_from_a_hub(tmp_path):
    saved(tmp_path / "root" / "models" / "org" / "scope" / "L1R-8x")
    (saved(tmp_path / "root" / "models" / "org" / "scope" / "L2R-8x") / "checkpoints" / "final.safetensors").unlink()
    command = [sys.executable, "-m", "sae_lm_eval", "inspect", "--model_args"]
    with serving(tmp_path / "root") as address:
        environment = hub_environment_of(address, tmp_path / "home")
        commands = [
            [*command, f"pretrained=world,sae=llama_scope:org/scope#{id_}"] for id_ in ("L1R-8x", "L2R-8x", "L3R-8x")
        ]
        processes = [subprocess.run(words, capture_output=True, text=True, env=environment) for words in commands]
    assert {done.returncode for done in processes} == {2}
    for done, sentence in zip(
        processes, (f"reads {WIDTH} values", "no checkpoints/final", "holds no dictionary #L3R"), strict=True
    ):
        assert sentence in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
