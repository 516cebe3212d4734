"""Cross-layer transcoders: both layouts against plain torch, in every way of running, and broken files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from conftest import hub_environment_of, serving
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from models import WIDTH, random_model, random_sae, word_tokenizer, words
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lm_eval import SaeHFLM, UserError, world
from sae_lm_eval.catalog.hub_headers import headers_of
from sae_lm_eval.dictionaries import cross_layer_loader
from sae_lm_eval.dictionaries.cross_layer import CrossLayerLatents, FileRows
from sae_lm_eval.dictionaries.loading import load_dictionaries, load_dictionary
from sae_lm_eval.harness.inspection import fits
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.results.variant_names import variant_name
from sae_lm_eval.splicing.arguments import requested_splices
from sae_lm_eval.splicing.attach import Attachment
from sae_lm_eval.splicing.module_io import hook_side
from sae_lm_eval.splicing.splice import Context
from sae_lm_eval.world import text

LATENTS, LAYERS = 40, 3


def weights(
    layer: int, *, threshold: bool = False, skip: bool = False, width: int = WIDTH, layers: int = LAYERS
) -> dict[str, Tensor]:
    """A layer's, as the formula has them: W_enc (d_in, latents), W_dec (latents, layers from this one on, d_out)."""
    rng = torch.Generator().manual_seed(layer)
    shapes = {
        "W_enc": (width, LATENTS),
        "b_enc": (LATENTS,),
        "W_dec": (LATENTS, layers - layer, width),
        "b_dec": (width,),
        **({"threshold": (LATENTS,)} if threshold else {}),
        **({"W_skip": (width, width)} if skip else {}),
    }
    tensors = {name: torch.randn(shape, generator=rng) / 5 for name, shape in shapes.items()}
    tensors["b_enc"] -= 0.8  # few are active
    return tensors


def saved(folder: Path, layout: str, *, layers: int = LAYERS, config: dict | None = None, **kind: bool) -> Path:
    """The files of a transcoder in a layout."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer in range(layers):
        w = weights(layer, layers=layers, **kind)
        if layout == "circuit-tracer":
            names = {"W_enc": w["W_enc"].T.contiguous(), **{n: w[n] for n in ("b_enc", "b_dec")}}
            names |= {n: w[n] for n in ("threshold", "W_skip") if n in w}
            save_file({f"{n}_{layer}": tensor for n, tensor in names.items()}, folder / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": w["W_dec"]}, folder / f"W_dec_{layer}.safetensors")
        else:
            full = torch.randn(LATENTS, layers, WIDTH)  # what stands at earlier layers is never used
            full[:, layer:] = w["W_dec"]
            names = {"w_enc": w["W_enc"], "w_dec": full, **{n: w[n] for n in ("b_enc", "b_dec", "threshold")}}
            if "W_skip" in w:
                names["affine_skip_connection"] = w["W_skip"]
            save_file(names, folder / f"params_layer_{layer}.safetensors")
    if layout == "circuit-tracer":
        hooks = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
        said = {"model_name": "org/model", "model_kind": "cross_layer_transcoder", **hooks, **(config or {})}
        (folder / "config.yaml").write_text(yaml.safe_dump(said))
    return folder


def latents_of(w: dict[str, Tensor], x: Tensor) -> Tensor:
    before = x @ w["W_enc"] + w["b_enc"]
    return torch.where(before > w.get("threshold", torch.zeros(())), before, torch.zeros(()))


# By architecture: the module whose input is what latents read, and the one whose output they write.
SITES = {
    ("circuit-tracer", "llama"): ("model.layers.{}.post_attention_layernorm", "input", "model.layers.{}.mlp"),
    ("circuit-tracer", "gemma2"): (
        "model.layers.{}.pre_feedforward_layernorm",
        "input",
        "model.layers.{}.post_feedforward_layernorm",
    ),
    ("circuit-tracer", "gpt2"): ("transformer.h.{}.ln_2", "input", "transformer.h.{}.mlp"),
    ("gemma-scope-2", "gemma3"): (
        "model.layers.{}.pre_feedforward_layernorm",
        "output",
        "model.layers.{}.post_feedforward_layernorm",
    ),
}


def replaced_by_hand(model, sites, layers, kept=(), edits=lambda _layer, latents: latents, error=False, **kind):
    """`model` with what the transcoder's formula gives at each of `layers`; the latents of every layer before read."""
    reads, side, writes = sites
    seen: dict[int, Tensor] = {}
    w = [weights(layer, **kind) for layer in range(LAYERS)]

    def read(layer, _module, args, out=None):
        seen[layer] = args[0] if side == "input" else out

    def write(layer, _module, _args, out):
        z = [latents_of(w[i], seen[i]) for i in range(layer + 1)]
        edited = [edits(i, latents) for i, latents in enumerate(z)]
        if error:
            z = [after - before for after, before in zip(edited, z, strict=True)]
            return out + sum(z[i] @ w[i]["W_dec"][:, layer - i] for i in range(layer + 1))
        new = sum(edited[i] @ w[i]["W_dec"][:, layer - i] for i in range(layer + 1)) + w[layer]["b_dec"]
        if "W_skip" in w[layer]:
            new = new + seen[layer] @ w[layer]["W_skip"]
        new = new.clone()
        new[:, list(kept)] = out[:, list(kept)]
        return new

    for layer in range(LAYERS):
        module = model.get_submodule(reads.format(layer))
        hook = lambda *a, layer=layer: read(layer, *a)  # noqa: E731
        module.register_forward_pre_hook(hook) if side == "input" else module.register_forward_hook(hook)
        if layer in layers:
            model.get_submodule(writes.format(layer)).register_forward_hook(lambda *a, layer=layer: write(layer, *a))
    return model


@pytest.mark.parametrize("place", SITES, ids="-".join)
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_all_layers_by_the_formula(tmp_path, place, skip):
    layout, name = place
    kind = {"threshold": layout != "circuit-tracer", "skip": skip}
    spec = f"clt:{saved(tmp_path / 'clt', layout, **kind)}"
    lm = SaeHFLM(pretrained=random_model(name), tokenizer=word_tokenizer(), sae=spec, splice_tokens="all")
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    model = replaced_by_hand(random_model(name), SITES[place], range(LAYERS), **kind)
    torch.testing.assert_close(lm._model_call(ids), model(ids).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(lm._model_call(ids), random_model(name)(ids).logits, atol=1e-2)


def family(*variants, name="llama", **kwargs):
    baseline = SaeHFLM(pretrained=random_model(name), tokenizer=word_tokenizer(), sae=[], splice="none", **kwargs)
    return joined(baseline, [baseline.as_variant(requested_splices(**given)) for given in variants])


def by_hand_in_lm_eval(layers=range(LAYERS), name="llama"):
    """lm_eval's own model, with the transcoder's formula in hooks: behind BOS everything is replaced."""
    lm = HFLM(pretrained=random_model(name), tokenizer=word_tokenizer(), device="cpu")
    replaced_by_hand(lm.model, SITES["circuit-tracer", name], layers)
    return lm


def requests_of(kind, **settings):
    header = words(12, seed=0)
    contexts = [f"{header} {words(n, seed=n)}" for n in (2, 5, 3, 9)]
    if kind == "loglikelihood":
        arguments = [(context, f" {words(2, seed=50)}") for context in contexts]
    else:
        arguments = [(context, *([settings] if settings else [])) for context in contexts]
    return [Instance(kind, {}, given, i, ("task", i, 1)) for i, given in enumerate(arguments)]


OTHERS = (
    {"sae": random_sae(WIDTH, "blocks.1.hook_resid_post", seed=1), "splice_tokens": "all"},
    {"sae": [], "splice": "none"},
)


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_every_kind_of_request_beside_other_variants(tmp_path, kind):
    spec = f"clt:{saved(tmp_path / 'clt', 'circuit-tracer')}"
    settings = {"until": ["w5"], "max_gen_toks": 8, "do_sample": False} if kind == "generate_until" else {}
    # Twice the same dictionaries, so that the first layer is computed for both at once; and one that begins later.
    same = {"sae": spec, "splice_tokens": "all", "dictionaries": load_dictionaries(spec)}
    models = family(same, same, {**same, "splice_layers": "1-2"}, *OTHERS)
    answers = [getattr(lm, kind)(requests_of(kind, **settings)) for lm in models]
    for index, layers in ((2, range(LAYERS)), (3, (1, 2))):
        expected = getattr(by_hand_in_lm_eval(layers), kind)(requests_of(kind, **settings))
        if kind == "generate_until":
            assert answers[index] == expected
        else:
            for ours, theirs in zip(answers[index], expected, strict=True):
                torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-4, rtol=0)
    assert answers[2] != answers[0]


def some_edited(layer: int, latents: Tensor) -> Tensor:
    latents = latents.clone()
    if layer == 0:
        latents[..., 7] = 1.5
    if layer == 1:
        latents[..., [2, 3]] = 0
    return latents


def the_largest(_layer: int, latents: Tensor) -> Tensor:
    return latents * (latents >= latents.sort(dim=-1, descending=True).values[..., 2, None])


@pytest.mark.parametrize("layout", [("circuit-tracer", "llama"), ("gemma-scope-2", "gemma3")], ids="-".join)
@pytest.mark.parametrize("layers", ["0-2", "2"])
@pytest.mark.parametrize("mode", ["reconstruction", "with_error"])
def test_edits_of_latents(tmp_path, layout, layers, mode):
    kind = {"threshold": layout[0] != "circuit-tracer"}
    folder = saved(tmp_path / "clt", layout[0], **kind)
    given = {"sae": f"clt:{folder}", "splice_tokens": "all", "splice_layers": layers, "splice": mode}
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    for edits, said in ((some_edited, {"clamp": "0/7:1.5", "ablate": "1/2+1/3"}), (the_largest, {"keep_top": 3})):
        model = replaced_by_hand(
            random_model(layout[1]),
            SITES[layout],
            (2,) if layers == "2" else range(LAYERS),
            edits=edits,
            error=mode == "with_error",
            **kind,
        )
        lm = SaeHFLM(pretrained=random_model(layout[1]), tokenizer=word_tokenizer(), **given, **said)
        torch.testing.assert_close(lm._model_call(ids), model(ids).logits, atol=1e-5, rtol=1e-5)
    plain = SaeHFLM(pretrained=random_model(layout[1]), tokenizer=word_tokenizer(), **given)
    assert not torch.allclose(lm._model_call(ids), plain._model_call(ids), atol=1e-3)
    assert lm.spliced.name == f"clt:{folder}#layer_{layers} (keep_top=3)" + (
        " (with_error)" if mode == "with_error" else ""
    )


def test_edits_of_latents_at_some_positions(tmp_path):
    spec = f"clt:{saved(tmp_path / 'clt', 'circuit-tracer')}"
    given = {"sae": spec, "splice_tokens": "all", "clamp": "0/7:1.5", "ablate": "1/2+1/3", "latent_positions": "last"}
    requests = requests_of("loglikelihood")
    _, lm, *_ = family(given, {"sae": spec, "splice_tokens": "all"}, *OTHERS)
    pairs = [request.args for request in requests]
    queries = [lm.spliced.query(*ids) for ids in lm.spliced.group.pairs(pairs)]
    for query, (logprob, _) in zip(queries, lm.loglikelihood(requests), strict=True):
        last = (torch.arange(len(query.ids)) == len(query.ids) - len(query.targets))[:, None]
        edits = lambda layer, z, last=last: torch.where(last, some_edited(layer, z), z)  # noqa: E731
        model = replaced_by_hand(random_model("llama"), SITES["circuit-tracer", "llama"], range(LAYERS), edits=edits)
        logits = model(torch.tensor([list(query.ids)])).logits[0, -len(query.targets) :].log_softmax(-1)
        expected = float(logits.gather(-1, torch.tensor(list(query.targets))[:, None]).sum())
        assert logprob == pytest.approx(expected, abs=1e-4)


def clean_by_hand(model, layers):
    """What a model gives as in `replaced_by_hand`, of latents that read what passes the untouched model."""
    reads, _, writes = SITES["circuit-tracer", "llama"]
    w = [weights(layer) for layer in range(LAYERS)]
    seen: dict[int, Tensor] = {}
    recording = [False]

    def read(layer, args):
        if recording[0]:
            seen[layer] = args[0]

    def write(layer, out):
        if recording[0]:
            return None
        return (
            sum(latents_of(w[i], seen[i]) @ w[i]["W_dec"][:, layer - i] for i in range(layer + 1)) + w[layer]["b_dec"]
        )

    for layer in range(LAYERS):
        hook = lambda _m, args, layer=layer: read(layer, args)  # noqa: E731
        model.get_submodule(reads.format(layer)).register_forward_pre_hook(hook)
        if layer in layers:
            hook = lambda _m, _a, out, layer=layer: write(layer, out)  # noqa: E731
            model.get_submodule(writes.format(layer)).register_forward_hook(hook)

    def run(ids):
        recording[0] = True
        model(ids)
        recording[0] = False
        return model(ids).logits

    return run


@pytest.mark.parametrize("layers", ["0-2", "1+2"])
def test_latents_that_read_the_clean_run(tmp_path, layers):
    given = {"sae": f"clt:{saved(tmp_path / 'clt', 'circuit-tracer')}", "splice_tokens": "all", "splice_layers": layers}
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    numbers = range(LAYERS) if layers == "0-2" else (1, 2)
    expected = clean_by_hand(random_model("llama"), numbers)(ids)
    models = family({**given, "splice_input": "clean"}, given, *OTHERS)
    torch.testing.assert_close(models[1]._model_call(ids), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(models[2]._model_call(ids), expected, atol=1e-3)
    together = [lm.loglikelihood(requests_of("loglikelihood")) for lm in models]
    alone = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), splice_input="clean", **given)
    with alone.spliced.attached():
        plain = HFLM(pretrained=alone.model, tokenizer=alone.tokenizer).loglikelihood(requests_of("loglikelihood"))
    torch.testing.assert_close(torch.tensor(together[1]), torch.tensor(plain), atol=1e-4, rtol=0)
    texts = requests_of("generate_until", until=[], max_gen_toks=6, do_sample=False)
    for request, written in zip(texts, models[1].generate_until(texts), strict=True):
        ids = models[1].tok_encode(request.args[0])
        for _ in range(6):
            ids = [*ids, int(clean_by_hand(random_model("llama"), numbers)(torch.tensor([ids]))[0, -1].argmax())]
        assert written == models[1].tokenizer.decode(ids[-6:], skip_special_tokens=True)


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_pre"])
def test_other_dictionaries_read_the_clean_run_too(hook):
    saes = [random_sae(WIDTH, "blocks.0.hook_attn_out", seed=3), random_sae(WIDTH, hook, seed=4)]
    models = family(*({"sae": saes, "splice_tokens": "all", "splice_input": kind} for kind in ("clean", "spliced")))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    splices = models[1].spliced.variant.splices
    model = random_model("llama")
    seen: dict = {}
    with torch.no_grad():
        for splice in splices:
            hook_side(model, splice.site_in.read, lambda x, s=splice: seen.__setitem__(s.site_in, x))
        model(ids)
        clean = dict(seen)
        for splice in splices:
            hook_side(model, splice.site_out.write, lambda y, s=splice: s.reconstruct(clean[s.site_in], y))
        expected = model(ids).logits
    torch.testing.assert_close(models[1]._model_call(ids), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(models[2]._model_call(ids), expected, atol=1e-4)
    together = [lm.loglikelihood(requests_of("loglikelihood")) for lm in models]
    assert together[1] != together[2]


def rewritten(file: Path, change) -> None:
    tensors = load_file(file)
    tensors = change(tensors) or tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


BROKEN = {
    "a layer is missing": (lambda f: (f / "W_enc_1.safetensors").unlink(), "no file W_enc_1.safetensors"),
    "decoders are missing": (lambda f: (f / "W_dec_2.safetensors").unlink(), "no file W_dec_2.safetensors"),
    "a tensor is missing": (
        lambda f: rewritten(
            f / "W_enc_1.safetensors", lambda t: {name: tensor for name, tensor in t.items() if name != "b_dec_1"}
        ),
        "Layer 1 of .* has no tensor 'b_dec_1'",
    ),
    "a tensor too many": (
        lambda f: rewritten(f / "W_enc_1.safetensors", lambda t: {**t, "W_up_1": torch.zeros(2)}),
        "a tensor 'W_up_1', which circuit-tracer's layout does not have",
    ),
    "another width in one layer": (
        lambda f: rewritten(f / "W_enc_2.safetensors", lambda t: {**t, "W_enc_2": torch.zeros(LATENTS, WIDTH + 1)}),
        "'W_enc_2' of layer 2 .* does not fit",
    ),
    "too few layers written": (
        lambda f: rewritten(f / "W_dec_0.safetensors", lambda t: {"W_dec_0": t["W_dec_0"][:, :2]}),
        "The first layer of .* writes at 2 layers, and there are files of 3",
    ),
    "decoders summed over layers": (
        lambda f: rewritten(f / "W_dec_0.safetensors", lambda t: {"W_dec_0": t["W_dec_0"].sum(1)}),
        "'W_dec_0' of layer 0 .* has 2 axes, where 3 are expected",
    ),
    "whole numbers": (
        lambda f: rewritten(f / "W_enc_0.safetensors", lambda t: {**t, "b_enc_0": torch.zeros(LATENTS).long()}),
        "holds torch.int64",
    ),
    "thresholds in one layer": (
        lambda f: rewritten(f / "W_enc_1.safetensors", lambda t: {**t, "threshold_1": torch.zeros(LATENTS)}),
        "thresholds in some layers",
    ),
    "skip connections in one layer": (
        lambda f: rewritten(f / "W_enc_1.safetensors", lambda t: {**t, "W_skip_1": torch.zeros(WIDTH, WIDTH)}),
        "skip connections in some layers",
    ),
    "truncated": (lambda f: (f / "W_dec_1.safetensors").write_bytes(b"\x80" * 40), "truncated or corrupt"),
    "no yaml": (lambda f: (f / "config.yaml").write_text("a: [1"), "config.yaml"),
    "a hook that is none": (
        lambda f: (f / "config.yaml").write_text("feature_output_hook: hook_mpl_out"),
        "hook_mpl_out.*hook_mlp_out",
    ),
    "a hook that is a number": (
        lambda f: (f / "config.yaml").write_text("feature_input_hook: 3"),
        "feature_input_hook",
    ),
    "another activation": (
        lambda f: (f / "config.yaml").write_text("activation: topk\nk: 3"),
        "activation 'topk' is unknown",
    ),
    "thresholds that are not there": (
        lambda f: (f / "config.yaml").write_text("activation: jumprelu"),
        "its files hold no thresholds",
    ),
    "no number of a layer": (
        lambda f: [file.rename(f / "W_enc_all.safetensors") for file in f.glob("W_enc_*")],
        "holds no cross-layer transcoder",
    ),
    "another kind of transcoders": (
        lambda f: (f / "config.yaml").write_text("model_kind: transcoder_set"),
        "model_kind",
    ),
    "nan": (
        lambda f: rewritten(f / "W_enc_1.safetensors", lambda t: {**t, "b_enc_1": torch.full((LATENTS,), torch.nan)}),
        "nan",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_get_a_sentence(tmp_path, what):
    folder = saved(tmp_path / "clt", "circuit-tracer")
    change, sentence = BROKEN[what]
    change(folder)
    with pytest.raises(UserError, match=sentence):
        SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=f"clt:{folder}")


WRONG = {
    "no such layer": ("clt:{folder}#layer_3", {}, "no layer 3; the layers run from 0 to 2"),
    "layers that it does not write": ("clt:{folder}", {"splice_layers": "1-5"}, "names layer 3.*0, 1, 2"),
    "layers that are none": ("clt:{folder}", {"splice_layers": "5-1"}, "splice_layers=5-1 names no layers"),
    "a word for layers": ("clt:{folder}", {"splice_layers": "all"}, "splice_layers=all names no layers"),
    "another site": ("clt:{folder}", {"hook": "blocks.0.hook_mlp_out"}, "hook"),
    "an input that is none": ("clt:{folder}", {"splice_input": "cleen"}, "splice_input 'cleen'.*clean"),
    "latents without a layer": ("clt:{folder}", {"ablate": 3}, "may be one of 3 dictionaries, .* as in 0/3"),
    "a layer without latents": ("clt:{folder}", {"ablate": "3/1"}, "no dictionary reads at layer 3; they read at 0, 1"),
    "a latent beyond": ("clt:{folder}", {"clamp": "1/40:2"}, "Layer 1 of the transcoder of .* has no latent 40"),
    "more than there are": ("clt:{folder}", {"keep_top": 41}, "keep_top=41: Layer 0 of .* has 40 latents"),
    "heads of an MLP": ("clt:{folder}", {"keep_top": 3, "latent_heads": 0}, "latent_heads= is for dictionaries of att"),
    "layers twice": ("clt:{folder}", {"splice_layers": "0-1+1"}, "splice_layers=0-1\\+1 names layer 1 twice"),
    "layers backwards": ("clt:{folder}#layer_2-1", {}, "there is nothing in layer_2-1"),
    "a map for each layer": ("clt:{folder}", {"hook_map": "raw+raw+raw"}, "take one for all"),
    "a revision of the world": ("clt:world@main", {}, "The embedded world has no revision 'main'"),
    "a factor": ("clt:{folder}", {"norm_factor": 2.0}, "needs no norm_factor"),
    "a folder above": ("clt:{folder.parent}", {}, "There is one at #clt"),
    "no folder": ("clt:{folder}/none", {}, "neither a folder"),
    "as SAELens": ("{folder}", {}, "name it clt:"),
    "a revision": ("clt:{folder}@main", {}, "local folder"),
    "twice": ("clt:{folder}+clt:{folder}#layer_1", {}, "one site takes one dictionary"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_words_get_a_sentence(tmp_path, what):
    folder = saved(tmp_path / "clt", "circuit-tracer")
    spec, more, sentence = WRONG[what]
    with pytest.raises(UserError, match=sentence):
        SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=spec.format(folder=folder), **more)


def test_a_model_of_another_depth(tmp_path):
    spec = f"clt:{saved(tmp_path / 'clt', 'circuit-tracer', layers=4)}"
    with pytest.raises(UserError, match="Layers run from 0 to 2"):
        SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=spec)


@pytest.mark.parametrize("layout", ["circuit-tracer", "gemma-scope-2"])
def test_decoders_that_stay_in_their_files(tmp_path, layout, monkeypatch):
    name = "llama" if layout == "circuit-tracer" else "gemma3"
    folder = saved(tmp_path / "clt", layout, threshold=layout != "circuit-tracer")
    given = {"tokenizer": word_tokenizer(), "sae": f"clt:{folder}", "splice_tokens": "all"}
    resident = SaeHFLM(pretrained=random_model(name), **given)
    monkeypatch.setattr(cross_layer_loader, "IN_MEMORY", 0.0)
    kept = SaeHFLM(pretrained=random_model(name), **given)
    firsts = [lm.spliced.variant.splices[0].dictionary for lm in (resident, kept)]
    counts = [sum(p.numel() for p in first.module.parameters()) for first in firsts]
    assert counts[0] - counts[1] == LATENTS * LAYERS * WIDTH
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    torch.testing.assert_close(kept._model_call(ids), resident._model_call(ids), atol=1e-5, rtol=1e-5)
    assert len({first.fingerprint() for first in firsts}) == 2


@pytest.mark.parametrize("density", [0.0, 0.01, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gather_is_the_product(density, dtype):
    rng = torch.Generator().manual_seed(0)
    latents = torch.rand(3, 7, 64, generator=rng) * (torch.rand(3, 7, 64, generator=rng) < density)
    decoder = torch.randn(64, 4, WIDTH, generator=rng)
    layer = CrossLayerLatents(2, torch.zeros(WIDTH, 64), torch.zeros(64), FileRows(decoder.to(dtype)))
    outputs = layer.written(latents.to(dtype), [2, 4])
    for output, column in zip(outputs, (0, 2), strict=True):
        expected = (latents.to(dtype).double() @ decoder.to(dtype)[:, column].double()).to(dtype)
        torch.testing.assert_close(output, expected)


def test_from_the_hub_the_asked_layers_alone(tmp_path):
    saved(tmp_path / "root" / "models" / "org" / "clt" / "small", "circuit-tracer")
    command = [sys.executable, "-m", "sae_lm_eval", "inspect", "--model_args"]
    with serving(tmp_path / "root") as address:
        environment = hub_environment_of(address, tmp_path / "home")
        specs = ("clt:org/clt", "org/clt#small", "clt:org/clt#small/layer_1", "clt:org/clt#small/layer_3")
        commands = [[*command, f"pretrained=world,sae={spec}"] for spec in specs]
        processes = [subprocess.run(words, capture_output=True, text=True, env=environment) for words in commands]
    errors = [done.stderr for done in processes]
    assert {done.returncode for done in processes} == {2}, errors
    assert "There is one at #small." in errors[0]
    assert "name it clt:org/clt#small." in errors[1]
    assert f"reads {WIDTH} values" in errors[2]
    assert "there is no layer 3; the layers run from 0 to 2" in errors[3]
    files = {file.name for file in (tmp_path / "home").rglob("snapshots/*/small/*.safetensors")}
    assert files == {f"W_{kind}_{layer}.safetensors" for kind in ("enc", "dec") for layer in (0, 1)}


def test_the_world_has_one_as_its_card_says():
    lm = SaeHFLM(pretrained="world", sae="clt:world", device="cpu")
    rows = world.world_facts()["cross_layer"]
    splices = lm.spliced.variant.splices
    assert [splice.dictionary.name for splice in splices] == [row["id"] for row in rows]
    held_out = text.documents(Random(world.world_facts()["seeds"]["held_out_text"]))
    documents = [document.text for document in islice(held_out, 60)]
    variant = lm.spliced.variant.in_mode("none")  # latents read the untouched model, as in training
    seen = [0.0] * len(splices)
    errors, means, count = [0.0] * len(splices), [torch.zeros(()) for _ in splices], 0

    def watch(splice, x, y, new, context):
        nonlocal count
        number = variant.number_of(splice)
        words = ~torch.isin(context.input_ids, torch.tensor(sorted(lm.spliced.variant.special_ids)))
        own, reconstruction = y[words].double(), splice.reconstruction(x, y, context)[words].double()
        errors[number] += (own - reconstruction).square().sum().item()
        seen[number] += own.square().sum().item()
        means[number] = means[number] + own.sum(0)
        count += int(words.sum()) if number == 0 else 0

    with torch.no_grad(), ExitStack() as scope:
        attachment = Attachment(lm.model, variant, scope)
        for document in documents:
            ids = torch.tensor([lm.tok_encode(document)])
            attachment.begin(Context.of_call(ids, {}), watch)
            lm.model(ids)
    for row, error, square, mean in zip(rows, errors, seen, means, strict=True):
        variance = square - count * (mean / count).square().sum().item()
        assert 1 - error / variance == pytest.approx(row["explained_variance"], abs=0.01)


def test_inspection_measures_the_whole_output(tmp_path):
    held_out = text.documents(Random(world.world_facts()["seeds"]["held_out_text"]))
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"text": document.text}) for document in islice(held_out, 40)))
    given = {"pretrained": "world", "sae": "clt:world", "device": "cpu"}
    dictionary_fits, _ = fits(given, str(file), 1500)
    for row, (fit, *_) in zip(world.world_facts()["cross_layer"], dictionary_fits, strict=True):
        assert fit.explained_variance == pytest.approx(row["explained_variance"], abs=0.01)
        assert fit.l0 == pytest.approx(row["l0"], rel=0.1)


def test_what_is_planned_of_one_before_it_is_loaded(tmp_path):
    headers = headers_of("clt:world")
    loaded = load_dictionaries("clt:world")
    parameters = {id(p): p.numel() for dictionary in loaded for p in dictionary.module.parameters()}
    assert sum(math.prod(shape) for header in headers for shape in header.shapes.values()) == sum(parameters.values())
    assert [(header.spec, header.hook_out, header.width) for header in headers] == [
        (dictionary.name, dictionary.hook_out, 256) for dictionary in loaded
    ]
    folder = saved(tmp_path / "clt", "gemma-scope-2", threshold=True)
    (alone,) = headers_of(f"clt:{folder}#layer_1")
    assert alone.module_out == "model.layers.1.post_feedforward_layernorm.output"
    assert len(alone.shapes) == 2 * 5
    (folder / "params_layer_1.safetensors").write_bytes(b"\x80" * 40)
    with pytest.raises(UserError, match=r"params_layer_1\.safetensors' of .* is truncated or corrupt"):
        headers_of(f"clt:{folder}")


def test_a_range_of_layers_and_the_name_of_a_variant(tmp_path):
    folder = saved(tmp_path / "clt", "circuit-tracer")
    names = [f"clt:{folder}#layer_{layer}" for layer in (1, 2)]
    assert [dictionary.name for dictionary in load_dictionaries(f"clt:{folder}#layer_1-2")] == names
    assert variant_name(names, None) == f"clt:{folder}#layer_1-2"
    with pytest.raises(UserError, match="names 2 dictionaries: load_dictionaries gives them all"):
        load_dictionary(f"clt:{folder}#layer_1-2")


WHOLE_TEXTS = {
    "clean": {
        "sae": [random_sae(WIDTH, f"blocks.{layer}.hook_resid_post", seed=3 + layer) for layer in (0, 1)],
        "splice_input": "clean",
    },
    "attending": {"sae": random_sae(WIDTH, "blocks.1.hook_resid_post", "temporal", seed=4)},
}


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama"])
@pytest.mark.parametrize("kind", WHOLE_TEXTS)
def test_texts_that_no_cache_serves_in_a_padded_batch(name, kind):
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    prompts = [words(n, seed=n) for n in (2, 5, 3, 9)]
    texts = [Instance("generate_until", {}, (prompt, settings), i, ("t", i, 1)) for i, prompt in enumerate(prompts)]

    def written(size: int) -> list[str]:
        given = {"pretrained": random_model(name), "tokenizer": word_tokenizer(), "batch_size": size, "device": "cpu"}
        return SaeHFLM(**given, **WHOLE_TEXTS[kind]).generate_until(texts, disable_tqdm=True)

    assert written(4) == written(1)


def test_a_cache_of_the_spliced_model_is_refused():
    given = {"sae": random_sae(WIDTH, "blocks.1.hook_resid_post", seed=4), "splice_input": "clean"}
    lm = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), **given)
    with lm.spliced.attached(), pytest.raises(UserError, match="use_cache=False"):
        lm.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)


def test_nothing_counts_of_dictionaries_at_other_layers():
    saes = [random_sae(WIDTH, f"blocks.{layer}.hook_resid_post", seed=layer) for layer in (0, 1)]
    loaded = [load_dictionary(sae) for sae in saes]
    loaded[1] = replace(loaded[1], untrained_tokens=(7, 8), context_size=8, prepend_bos=True)
    alone = requested_splices(saes, dictionaries=loaded[:1])
    chosen = requested_splices(saes, dictionaries=loaded, splice_layers=0)
    assert chosen.dictionaries == alone.dictionaries
    given = {"hook": "blocks.2.hook_mlp_out+blocks.1.hook_mlp_out", "hook_map": "raw+raw", "splice_layers": 1}
    (hook,) = requested_splices(saes, dictionaries=loaded, **given).choices.hooks or ()
    assert hook == "blocks.1.hook_mlp_out"


def test_rows_of_a_file_are_of_the_dictionarys_dtype_and_their_sample_of_their_content():
    rng = torch.Generator().manual_seed(0)
    decoder = torch.randn(64, 2, WIDTH, generator=rng)
    latents = torch.rand(5, 64, generator=rng).bfloat16()
    encoder = torch.zeros(WIDTH, 64), torch.zeros(64)
    in_file, resident = (
        CrossLayerLatents(0, *encoder, rows).bfloat16() for rows in (FileRows(decoder), decoder.clone())
    )
    torch.testing.assert_close(in_file.written(latents, [1]), resident.written(latents, [1]))
    stamps = [CrossLayerLatents(0, *encoder, FileRows(rows)).stamp for rows in (decoder, decoder.clone(), -decoder)]
    assert torch.equal(stamps[0], stamps[1])
    assert not torch.equal(stamps[0], stamps[2])
    assert torch.equal(in_file.stamp, stamps[0])


def test_another_function_than_its_weights_is_refused():
    layer = load_dictionaries("clt:world")[1]
    with pytest.raises(UserError, match="does not give what its own weights make"):
        load_dictionary(replace(layer, reconstruct=lambda x: 2 * layer.reconstruct(x)))


def test_layers_that_are_given_as_objects_share_their_latents(tmp_path):
    spec = f"clt:{saved(tmp_path / 'clt', 'circuit-tracer')}"
    given = [*load_dictionaries(spec)]
    lm, by_name = (
        SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=sae, splice_tokens="all")
        for sae in (given, spec)
    )
    outputs = [splice.dictionary.cross_layer for splice in lm.spliced.variant.splices]
    assert len({id(latents) for output in outputs for latents in output.sources}) == LAYERS
    assert not {id(p) for dictionary in given for p in dictionary.module.parameters()} & {
        id(p) for output in outputs for p in output.parameters()
    }
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert torch.equal(lm._model_call(ids), by_name._model_call(ids))
    with torch.no_grad():
        given[2].cross_layer.sources[0].W_enc.mul_(2)  # of the first layer, which all three have
    changed = lm._model_call(ids)
    assert not torch.allclose(changed, by_name._model_call(ids), atol=1e-3)
    outputs = [splice.dictionary.cross_layer for splice in lm.spliced.variant.splices]
    assert len({id(latents) for output in outputs for latents in output.sources}) == LAYERS


@pytest.mark.parametrize("layout", ["circuit-tracer", "gemma-scope-2"])
def test_parameters_are_counted_once_whoever_counts(tmp_path, layout, monkeypatch):
    kind = {"threshold": True, "skip": True}
    spec = f"clt:{saved(tmp_path / 'clt', layout, **kind)}"
    planned = [sum(math.prod(shape) for shape in header.shapes.values()) for header in headers_of(spec)]
    resident = [dictionary.cross_layer.parameter_count for dictionary in load_dictionaries(spec)]
    monkeypatch.setattr(cross_layer_loader, "IN_MEMORY", 0.0)
    in_files = [dictionary.cross_layer.parameter_count for dictionary in load_dictionaries(spec)]
    expected = [sum(tensor.numel() for tensor in weights(layer, **kind).values()) for layer in range(LAYERS)]
    assert planned == resident == in_files == expected
