"""`sae-lm-eval inspect`: what would be spliced where, from a configuration alone, and which map fits a text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import WIDTH, random_model, random_sae, word_tokenizer, words
from oracle import PROCESSING, hooked_transformer
from sae_lens import SAE
from typer.testing import CliRunner

from sae_lm_eval import UserError
from sae_lm_eval.cli.main import app
from sae_lm_eval.harness import inspection

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, a text, and dictionaries of several kinds, as a user has them on disk."""
    folder = tmp_path_factory.mktemp("inspect")
    model = random_model("gpt2")
    model.save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": words(40, seed=s)}) for s in range(30)))
    trained_on_processed(model).save_model(folder / "centered")
    transcoder = random_sae(WIDTH, "blocks.1.mlp.hook_in", "skip_transcoder", hook_out="blocks.1.hook_mlp_out")
    transcoder.save_model(folder / "transcoder")
    scaled = random_sae(WIDTH, HOOK)
    scaled.cfg.normalize_activations = "expected_average_only_in"
    scaled.save_model(folder / "scaled")
    return folder


def trained_on_processed(model) -> SAE:
    """Reconstructs TransformerLens' centred stream, as far as half its directions go, and says nothing of centring."""
    hooked = hooked_transformer(model, processed=True)
    ids = torch.randint(3, 100, (40, 30), generator=torch.Generator().manual_seed(5))
    _, cache = hooked.run_with_cache(ids, prepend_bos=False, names_filter=HOOK)
    x = cache[HOOK].flatten(0, 1).detach()
    mean = x.mean(0)
    directions = torch.linalg.svd(x - mean, full_matrices=False).Vh[: WIDTH // 2]
    sae = random_sae(WIDTH, HOOK, model_name="gpt2-small", context_size=32, prepend_bos=True)
    both = torch.cat([directions, -directions])  # a ReLU passes each direction one way
    with torch.no_grad():
        for weight in sae.parameters():
            weight.zero_()
        sae.W_enc[:, : len(both)], sae.W_dec[: len(both)] = both.T, both
        sae.b_dec.copy_(mean)
    return sae


def arguments(folder: Path, name: str, **more) -> dict:
    return {"pretrained": str(folder / "model"), "sae": str(folder / name), "device": "cpu", **more}


def test_the_plan_needs_no_weights_of_the_model(folder, monkeypatch):
    (folder / "model" / "model.safetensors").rename(folder / "weights")
    try:
        (splice,) = inspection.planned_variant(arguments(folder, "transcoder")).splices
    finally:
        (folder / "weights").rename(folder / "model" / "model.safetensors")
    facts = inspection.splice_facts(splice, "all are spliced")
    assert facts["reads"] == f"blocks.1.mlp.hook_in = transformer.h.1.mlp.input, (..., {WIDTH})"
    assert facts["writes"] == f"blocks.1.hook_mlp_out = transformer.h.1.mlp.output, (..., {WIDTH})"
    assert facts["not stated"] == "model_names, context_size, prepend_bos, processing"
    assert facts["model loaded"] == "not stated: taken as it is"
    assert facts["trained on"].endswith("behind BOS: not stated")
    assert facts["latents"] == "64"


def test_the_right_map_of_a_release_that_says_nothing_shows_in_the_fit(folder):
    ((raw, centered),), (factor,) = inspection.fits(arguments(folder, "centered"), str(folder / "text.jsonl"), 600)
    assert (raw.map, centered.map) == ("raw", "centered")
    assert factor is None
    assert raw.tokens == centered.tokens == 600
    assert centered.explained_variance > raw.explained_variance + 0.01
    assert centered.l0 == pytest.approx(WIDTH / 2, abs=0.5)


def test_explained_variance_agrees_with_a_direct_computation(folder):
    ((fit, _),), _ = inspection.fits(arguments(folder, "centered"), str(folder / "text.jsonl"), 40)
    model, tokenizer = random_model("gpt2"), word_tokenizer()
    ids = tokenizer.encode(json.loads((folder / "text.jsonl").read_text().splitlines()[0])["text"])
    x = torch.cat(
        [
            model.transformer(input_ids=torch.tensor([[1, *piece]]), output_hidden_states=True).hidden_states[2][0, 1:]
            for piece in (ids[:31], ids[31:])
        ]
    ).double()
    z = SAE.load_from_disk(folder / "centered")(x.float()).double()
    variance = x.pow(2).sum(-1).mean() - x.mean(0).pow(2).sum()
    expected = 1 - (x - z).pow(2).sum(-1).mean() / variance
    assert fit.explained_variance == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("edits", [{"ablate": "3", "latent_positions": "last"}, {"keep_top": 2}])
def test_the_fit_is_that_of_the_dictionary_without_edits_of_its_latents(folder, edits):
    (plain,), _ = inspection.fits(arguments(folder, "centered"), str(folder / "text.jsonl"), 60)
    (edited,), _ = inspection.fits(arguments(folder, "centered", **edits), str(folder / "text.jsonl"), 60)
    assert edited == plain


def test_a_text_of_one_token_explains_no_variance(folder, tmp_path):
    (tmp_path / "one.txt").write_text("w5")
    ((fit, _),), _ = inspection.fits(arguments(folder, "centered"), str(tmp_path / "one.txt"), 10)
    assert (fit.tokens, fit.explained_variance) == (1, None)
    assert fit.l0 is not None


@pytest.mark.parametrize("name", ["centered", "scaled"])
def test_a_text_with_no_position_to_splice_at_is_refused(folder, name):
    given = arguments(folder, name, splice_tokens="non_special:9999")
    with pytest.raises(UserError, match=r"spliced in nowhere in this text, .* of the first 9999 positions\. Give"):
        inspection.fits(given, str(folder / "text.jsonl"), 600)


def test_a_missing_norm_factor_is_estimated_from_the_text(folder):
    _, (factor,) = inspection.fits(arguments(folder, "scaled"), str(folder / "text.jsonl"), 300)
    assert factor is not None
    model = random_model("gpt2")
    ids = torch.tensor([[1, *range(3, 40)]])
    norm = model.transformer(input_ids=ids, output_hidden_states=True).hidden_states[2][0, 1:].norm(dim=-1).mean()
    assert factor == pytest.approx(WIDTH**0.5 / float(norm), rel=0.2)


def test_the_command(folder):
    text = folder / "text.jsonl"
    whole_line = arguments(folder, "centered", splice="mean", mean_text=text, mean_tokens=10)
    model_args = ",".join(f"{k}={v}" for k, v in whole_line.items())
    said = CliRunner().invoke(app, ["inspect", "--model_args", model_args, "--text", str(folder / "text.jsonl")])
    assert said.exit_code == 0, said.output
    assert "transformer.h.1.output" in said.output
    assert "raw (chosen)" in said.output
    assert "centered" in said.output


def test_all_processing_options_are_known():
    assert {"fold_ln", "center_writing_weights", "fold_value_biases"} >= PROCESSING


@pytest.mark.parametrize(
    ("arguments_", "sentence"),
    [
        ([], "Give --model_args pretrained=...,sae=... to inspect a splice, or --list PATTERN to search."),
        (["--model_args", "sae=world#blocks.2.hook_resid_post.k4"], "pretrained= is missing: name a model"),
        (["--model_args", "pretrained=world,sae=world#k4"], "The world has no dictionary 'k4'. It has "),
        (["--model_args", "pretrained=world,sea=world#k4"], "sae_hf has no argument 'sea'. Did you mean 'sae'?"),
        (["--model_args", "pretrained=world,sae=world#k4", "--tokens", "0"], "--tokens=0 must be a whole number"),
        (["--model_args", "pretrained=world,sae=world#k4", "--text", "no.txt"], "There is no text file 'no.txt'."),
        (["--list", "gemma-scop-2b-pt-res#*"], "No dictionary that SAELens has registered matches"),
    ],
)
def test_a_mistake_ends_the_command_with_a_sentence(arguments_, sentence):
    command = [str(Path(sys.executable).parent / "sae-lm-eval"), "inspect", *arguments_]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert said.returncode == 2
    assert said.stderr.startswith(f"sae-lm-eval: {sentence}")
    assert len(said.stderr.strip().splitlines()) == 1


def test_the_embedded_world_can_be_inspected():
    (splice,) = inspection.planned_variant({"pretrained": "world", "sae": "world#blocks.2.mlp.transcoder"}).splices
    assert str(splice.site_in.read) == "model.layers.2.mlp.input"
    assert str(splice.site_out.write) == "model.layers.2.mlp.output"
