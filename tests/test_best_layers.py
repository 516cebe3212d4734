"""Layers that are found by what each costs alone."""

from __future__ import annotations

import json

import pytest
import torch
from models import WIDTH, random_model, random_sae, word_tokenizer, words
from test_cross_layer import LAYERS, saved

from sae_lm_eval import SaeHFLM, UserError, run
from sae_lm_eval.runs.plan import plan_sweep
from sae_lm_eval.runs.sweep import sweep_of, variant_requests
from sae_lm_eval.world import text


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(words(23, seed=n) for n in range(6)))
    return path


def adapter(**given) -> SaeHFLM:
    return SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), splice_tokens="all", **given)


def kl_alone(layer: int, windows: list[list[int]], **given) -> float:
    """KL of the model in which one layer is spliced in, by plain log-softmax, in nats a token."""
    lm, total, count = adapter(splice_layers=layer, **given), 0.0, 0
    for ids in windows:
        row = torch.tensor([ids[:-1]])
        p, q = (logits.double().log_softmax(-1) for logits in (random_model("llama")(row).logits, lm._model_call(row)))
        total, count = total + float((p.exp() * (p - q)).sum()), count + row.shape[1]
    return total / count


@pytest.mark.parametrize("how", [{}, {"splice_input": "clean"}, {"splice": "zero"}])
def test_the_cheapest_alone(tmp_path, file, how):
    spec = f"clt:{saved(tmp_path / 'clt', 'circuit-tracer')}"
    lm = adapter(sae=spec, splice_layers="best:2", layers_text=str(file), **how)
    record = lm.spliced.provenance()["best_layers"]
    windows = lm.spliced.tokens.windows([file.read_text()], length=lm.spliced.context_size, tokens=4096)
    ranked_by = {name: value for name, value in how.items() if name != "splice"}  # by what reconstructions cost
    expected = {str(layer): kl_alone(layer, windows, sae=spec, **ranked_by) for layer in range(LAYERS)}
    assert record["kl_alone"] == pytest.approx(expected, rel=1e-3)
    cheap = sorted(sorted(expected, key=lambda layer: expected[layer])[:2])
    assert [str(splice.site_out.layer) for splice in lm.spliced.variant.splices] == cheap
    assert lm.spliced.provenance()["splice_layers"] == "best:2"
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    by_name = adapter(sae=spec, splice_layers="+".join(cheap), **how)
    assert torch.equal(lm._model_call(ids), by_name._model_call(ids))


def test_dictionaries_of_one_layer_are_chosen_together(file):
    hooks = ("blocks.0.hook_mlp_out", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out")
    saes = [random_sae(WIDTH, hook, seed=number) for number, hook in enumerate(hooks)]
    lm = adapter(sae=saes, splice_layers="best:1", layers_text=str(file))
    chosen = [splice.site_out.hook for splice in lm.spliced.variant.splices]
    costs = lm.spliced.provenance()["best_layers"]["kl_alone"]
    assert chosen == ([hooks[0]] if costs["0"] < costs["1"] else [*hooks[1:]])
    assert set(costs) == {"0", "1"}


def test_a_layer_costs_the_same_whoever_asks(tmp_path, file, monkeypatch):
    from sae_lm_eval.scoring import best_layers

    spec, calls = f"clt:{saved(tmp_path / 'clt', 'circuit-tracer')}", []
    lm = adapter(sae=spec, splice_layers="best:2", layers_text=str(file))
    monkeypatch.setattr(best_layers, "_costs", lambda *_: calls.append(1))
    again = lm.as_variant(lm.spliced.wanted)
    assert not calls
    assert again.spliced.identity() == lm.spliced.identity()


WRONG = {
    "no text": ({"splice_layers": "best:2"}, "splice_layers=best:COUNT and layers_text=FILE go together"),
    "a text for nothing": ({"layers_text": "{file}"}, "go together"),
    "no such text": ({"splice_layers": "best:2", "layers_text": "{file}.none"}, r"text\.txt\.none"),
    "more than there are": ({"splice_layers": "best:4", "layers_text": "{file}"}, "there are 3 layers to choose from"),
    "none": ({"splice_layers": "best:0", "layers_text": "{file}"}, "is not of the form best:COUNT"),
    "a word": ({"splice_layers": "best:all", "layers_text": "{file}"}, "is not of the form best:COUNT"),
    "a part": ({"splice_layers": "best:1.5", "layers_text": "{file}"}, "is not of the form best:COUNT"),
    "no count": ({"splice_layers": "best", "layers_text": "{file}"}, "is not of the form best:COUNT"),
    "the worst": ({"splice_layers": "worst:2", "layers_text": "{file}"}, "splice_layers=worst:2 names no layers"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_told_in_a_sentence(tmp_path, file, what):
    spec = f"clt:{saved(tmp_path / 'clt', 'circuit-tracer')}"
    given, sentence = WRONG[what]
    with pytest.raises(UserError, match=sentence):
        adapter(sae=spec, **{name: value.format(file=file) for name, value in given.items()})


def test_a_curve_of_layers_in_a_sweep(file):
    entry = {"sae": "clt:world", "name": "mlps", "splice_layers": ["best:1", "best:2", "0-1"], "layers_text": str(file)}
    variants = variant_requests([entry], ["zero"])
    texts = {variant.name: variant.arguments.get("layers_text") for variant in variants if not variant.control_of}
    assert len(texts) == 3
    assert [*texts.values()] == [str(file), str(file), None]
    sweep = sweep_of({"model_args": {"pretrained": "world"}, "variants": [entry], "tasks": "sae_world_villages"})
    whys = [variant.why for variant in plan_sweep(sweep, None).variants]
    assert whys == ["layers are chosen once the model is loaded"] * 2 + [None]


def test_a_run_with_the_best_layers(tmp_path):
    from itertools import islice
    from random import Random

    held_out = tmp_path / "text.jsonl"
    documents = islice(text.documents(Random(5)), 40)
    held_out.write_text("\n".join(json.dumps({"text": document.text}) for document in documents))
    series = {"sae": "clt:world", "name": "mlps", "splice_layers": ["best:1", "best:2"], "layers_text": str(held_out)}
    given = {"tasks": "sae_world_villages", "limit": 4, "device": "cpu", "output_path": tmp_path / "out"}
    run(model_args={"pretrained": "world"}, variants=[series], **given)
    layers = {}
    for folder in (tmp_path / "out").glob("mlps*"):
        (results,) = folder.glob("*/results_*.json")
        record = json.loads(results.read_text())["config"]["sae_lm_eval"]
        layers[record["splice_layers"]] = {splice["hook_out"] for splice in record["splices"]}
        costs = record["best_layers"]["kl_alone"]
        cheapest = min(costs, key=costs.get)
        assert f"blocks.{cheapest}.hook_mlp_out" in layers[record["splice_layers"]]
    assert len(layers["best:1"]) == 1
    assert layers["best:1"] < layers["best:2"]
