"""Weakly causal crosscoders in Gemma Scope 2's layout, against plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from models import WIDTH, random_model, word_tokenizer, words
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.catalog.hub_headers import headers_of
from sae_lm_eval.dictionaries.loading import load_dictionaries
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.splicing.arguments import requested_splices

LATENTS, AT = 40, (0, 2)
ID = "crosscoder/layer_0_2_width_40_l0_big"


def weights(number: int, skip: bool = False) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(10 + number)
    shapes = {
        "w_enc": (WIDTH, LATENTS),
        "b_enc": (LATENTS,),
        "w_dec": (LATENTS, len(AT), WIDTH),
        "b_dec": (WIDTH,),
        "threshold": (LATENTS,),
        **({"affine_skip_connection": (WIDTH, WIDTH)} if skip else {}),
    }
    tensors = {name: torch.randn(shape, generator=rng) / 5 for name, shape in shapes.items()}
    tensors["b_enc"] -= 0.4
    return tensors


def saved(folder: Path, skip: bool = False, **config) -> Path:
    inside = folder / ID
    inside.mkdir(parents=True)
    for number in range(len(AT)):
        save_file(weights(number, skip), inside / f"params_layer_{number}.safetensors")
    hooks = dict.fromkeys(("hf_hook_point_in", "hf_hook_point_out"), "model.layers.{0,2}.output")
    said = {**hooks, "model_name": "google/gemma-v3-270m-pt", "type": "crosscoder", "affine_connection": skip, **config}
    (inside / "config.json").write_text(json.dumps(said))
    return folder


def latents_of(w: dict[str, Tensor], x: Tensor) -> Tensor:
    before = x @ w["w_enc"] + w["b_enc"]
    return torch.where(before > w["threshold"], before, torch.zeros(()))


def by_hand(ids: Tensor, layers=AT, clean: bool = False, skip: bool = False, ablated: int | None = None) -> Tensor:
    """Logits of a random Gemma 3 whose residual stream behind `layers` is what the formula says."""
    model, w = random_model("gemma3"), [weights(number, skip) for number in range(len(AT))]
    seen: dict[int, Tensor] = {}

    def keep(number, _module, _args, out):
        seen.setdefault(number, out)

    def write(number, _module, _args, out):
        if not clean or number not in seen:
            seen[number] = out
        if AT[number] not in layers:
            return None
        new = w[number]["b_dec"] + (seen[number] @ w[number]["affine_skip_connection"] if skip else 0)
        for source in range(number + 1):
            latents = latents_of(w[source], seen[source])
            if source == 0 and ablated is not None:
                latents[..., ablated] = 0
            new = new + latents @ w[source]["w_dec"][:, number]
        return new

    with torch.no_grad():
        if clean:
            handles = [
                model.model.layers[at].register_forward_hook(lambda *a, n=n: keep(n, *a)) for n, at in enumerate(AT)
            ]
            model(ids)
            for handle in handles:
                handle.remove()
        for number, at in enumerate(AT):
            model.model.layers[at].register_forward_hook(lambda *a, n=number: write(n, *a))
        return model(ids).logits


def adapter(spec: str, **given) -> SaeHFLM:
    return SaeHFLM(
        pretrained=random_model("gemma3"), tokenizer=word_tokenizer(), sae=spec, splice_tokens="all", **given
    )


IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
ASKED = {
    "all": ({}, {}),
    "the last": ({"splice_layers": 2}, {"layers": (2,)}),
    "the first": ({"splice_layers": 0}, {"layers": (0,)}),
    "of the clean run": ({"splice_input": "clean"}, {"clean": True}),
    "with an edit": ({"ablate": "0/3"}, {"ablated": 3}),
}


@pytest.mark.parametrize("what", ASKED)
def test_by_the_formula(tmp_path, what):
    given, how = ASKED[what]
    lm = adapter(f"clt:{saved(tmp_path / 'clt')}#{ID}", **given)
    torch.testing.assert_close(lm._model_call(IDS), by_hand(IDS, **how), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(lm._model_call(IDS), random_model("gemma3")(IDS).logits, atol=1e-2)


def test_with_a_skip_connection_and_by_layer(tmp_path):
    folder = saved(tmp_path / "clt", skip=True)
    lm = adapter(f"clt:{folder}#{ID}")
    torch.testing.assert_close(lm._model_call(IDS), by_hand(IDS, skip=True), atol=1e-5, rtol=1e-5)
    lm = adapter(f"clt:{folder}#{ID}/layer_2")
    torch.testing.assert_close(lm._model_call(IDS), by_hand(IDS, layers=(2,), skip=True), atol=1e-5, rtol=1e-5)


def test_requests_beside_other_variants(tmp_path):
    spec = f"clt:{saved(tmp_path / 'clt')}#{ID}"
    baseline = SaeHFLM(pretrained=random_model("gemma3"), tokenizer=word_tokenizer(), sae=[], splice="none")
    choices = [{}, {"splice_layers": 2}, {"splice_input": "clean"}]
    variants = [baseline.as_variant(requested_splices(spec, splice_tokens="all", **choice)) for choice in choices]
    models = joined(baseline, variants, bos=False)
    pairs = [(words(n, seed=n), f" {words(2, seed=50)}") for n in (4, 9, 6)]
    requests = [Instance("loglikelihood", {}, pair, i, ("task", i, 1)) for i, pair in enumerate(pairs)]
    for lm, how in zip(models[1:], ({}, {"layers": (2,)}, {"clean": True}), strict=True):
        for (context, continuation), (logprob, _) in zip(pairs, lm.loglikelihood(requests), strict=True):
            before, behind = lm.tok_encode(context), lm.tok_encode(continuation)
            logits = by_hand(torch.tensor([[*before, *behind]])[:, :-1], **how)[0, -len(behind) :].log_softmax(-1)
            expected = float(logits.gather(-1, torch.tensor(behind)[:, None]).sum())
            assert logprob == pytest.approx(expected, abs=1e-4)
    settings = {"until": [], "max_gen_toks": 4, "do_sample": False}
    texts = [Instance("generate_until", {}, (pair[0], settings), i, ("task", i, 1)) for i, pair in enumerate(pairs)]
    for (context, _), text in zip(pairs, models[1].generate_until(texts, disable_tqdm=True), strict=True):
        ids = models[1].tok_encode(context)
        for _ in range(4):
            ids = [*ids, int(by_hand(torch.tensor([ids]))[0, -1].argmax())]
        assert text == models[1].tokenizer.decode(ids[-4:], skip_special_tokens=True)


def test_what_is_said_of_one(tmp_path):
    spec = f"clt:{saved(tmp_path / 'clt')}#{ID}"
    first, last = load_dictionaries(spec)
    assert (first.name, last.name) == (f"{spec}/layer_0", f"{spec}/layer_2")
    assert first.architecture == "jumprelu_crosscoder"
    assert last.hook_in == last.hook_out == "blocks.2.hook_resid_post"
    assert last.module_hook_out == "model.layers.2.output"
    assert last.model_names == ("google/gemma-3-270m",)
    headers = headers_of(spec)
    assert [(header.spec, header.hook_out, header.width) for header in headers] == [
        (dictionary.name, dictionary.hook_out, dictionary.d_dictionary) for dictionary in (first, last)
    ]
    loaded = {
        id(p): p
        for dictionary in (first, last)
        for p in (*dictionary.module.parameters(), *dictionary.module.buffers())
    }
    assert sum(torch.Size(shape).numel() for header in headers for shape in header.shapes.values()) == sum(
        tensor.numel() for tensor in loaded.values()
    )
    assert sum(dictionary.cross_layer.parameter_count for dictionary in (first, last)) == sum(
        t.numel() for t in loaded.values()
    )


def rewritten(folder: Path, **said) -> None:
    file = folder / ID / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))


def hooks(path: str) -> dict[str, str]:
    return {"hf_hook_point_in": path, "hf_hook_point_out": path}


BROKEN = {
    "a layer between": ("#{id}/layer_1", lambda f: None, "there is no layer 1; the layers are 0, 2"),
    "more layers than files": ("#{id}", lambda f: rewritten(f, **hooks("model.layers.{0,1,2}.output")), "files of 2"),
    "no layers": ("#{id}", lambda f: rewritten(f, **hooks("model.layers.5.output")), "where {all} or layers as in"),
    "words for layers": (
        "#{id}",
        lambda f: rewritten(f, **hooks("model.layers.{a,b}.output")),
        "where {all} or layers",
    ),
    "other layers written": (
        "#{id}",
        lambda f: rewritten(f, hf_hook_point_out="model.layers.{1,2}.output"),
        "reads at the layers 0, 2 and writes at 1, 2",
    ),
    "out of order": (
        "#{id}",
        lambda f: rewritten(f, **hooks("model.layers.{2,0}.output")),
        "2, 0, which are not in order",
    ),
    "layers beyond the model's": ("#{id}", lambda f: rewritten(f, **hooks("model.layers.{0,9}.output")), "no module"),
    "a number for a hook": ("#{id}", lambda f: rewritten(f, hf_hook_point_in=3), "hf_hook_point_in"),
    "one file": ("#{id}", lambda f: (f / ID / "params_layer_1.safetensors").unlink(), "0, 2, and there are files of 1"),
    "the folder above": ("", lambda f: None, "There is one at #crosscoder"),
    "a skip connection that is not there": (
        "#{id}",
        lambda f: rewritten(f, affine_connection=True),
        "first layer has none",
    ),
    "no threshold": (
        "#{id}",
        lambda f: save_file(
            {n: t for n, t in load_file(f / ID / "params_layer_0.safetensors").items() if n != "threshold"},
            f / ID / "params_layer_0.safetensors",
        ),
        "Layer 0 of .* has no tensor 'threshold'",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_ones_get_a_sentence(tmp_path, what):
    spec, change, sentence = BROKEN[what]
    folder = saved(tmp_path / "clt")
    change(folder)
    with pytest.raises(UserError, match=sentence):
        adapter(f"clt:{folder}{spec.format(id=ID)}")
