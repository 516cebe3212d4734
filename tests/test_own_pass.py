"""Edits that no pass can run for some of its rows alone: the head, and whole attention modules."""

from __future__ import annotations

import copy

import pytest
import torch
from models import random_ids, random_model, random_sae, word_tokenizer
from scipy import stats
from torch import nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.runs.run import run
from sae_lm_eval.splicing.weight_edits import NF4, normal_float

ATTENTION = "model.layers.1.self_attn"
PAIRS = [("w3 w4 w5", " w6 w7"), ("w3 w4 w5", " w8"), ("w9 w10", " w3 w4 w5 w6"), ("w3 w4 w5 w6 w9", " w20 w3")]


def adapter(model=None, **kwargs) -> SaeHFLM:
    return SaeHFLM(pretrained=model or random_model("llama"), tokenizer=word_tokenizer(), **kwargs)


class FirstTokens(nn.Module):
    """In the place of attention: each position sees the mean of those up to it, whatever cache it is given."""

    def forward(self, hidden_states, **_):
        count = torch.arange(1, hidden_states.shape[1] + 1).view(1, -1, 1)
        return hidden_states.cumsum(1) / count, None


def other_head(model):
    head = copy.deepcopy(model.lm_head)
    return {"lm_head": nn.Sequential(head, nn.Tanh())}


def other_head_weights(model):
    return {"lm_head.weight": model.lm_head.weight.flip(0)}


def other_attention(_model):
    return {ATTENTION: FirstTokens()}


def half_of_attention(model):
    """The model's own attention, of which the output is halved: it keeps caches as ever."""
    half = copy.deepcopy(model.get_submodule(ATTENTION))
    with torch.no_grad():
        half.o_proj.weight.div_(2)
    return {ATTENTION: half}


EDITS = {"head": other_head, "head's weights": other_head_weights, "mean": other_attention, "half": half_of_attention}


def plainly(model, edit, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a copy of the model that has the edit for good."""
    changed = copy.deepcopy(model)
    for name, value in edit(changed).items():
        owner, _, own = name.rpartition(".")
        if isinstance(value, torch.Tensor):
            changed.get_parameter(name).data.copy_(value)
        else:
            setattr(changed.get_submodule(owner), own, value)
    with torch.no_grad():
        return changed(ids, use_cache=False).logits


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_model_is_one_with_that_module(name):
    model, ids = random_model("llama"), random_ids()
    lm = adapter(model, edit=EDITS[name])
    assert lm.spliced.variant.is_apart
    before = model(ids).logits
    torch.testing.assert_close(lm._model_call(ids), plainly(model, EDITS[name], ids), rtol=1e-5, atol=1e-5)
    assert torch.equal(model(ids).logits, before)


def test_they_are_scored_beside_what_shares_a_pass():
    from lm_eval.api.instance import Instance

    model = random_model("llama")
    instances = [Instance("loglikelihood", {}, pair, 0, ("task", number, 1)) for number, pair in enumerate(PAIRS)]
    variants = [adapter(model, edit=edit) for edit in EDITS.values()]
    variants.insert(1, adapter(model, sae=random_sae(32, "blocks.1.hook_resid_post")))
    variants.insert(3, adapter(model, edit="prune?share=0.5"))
    together = joined(adapter(model, sae=[], splice="none"), variants)
    assert together[0].spliced.is_scored
    baseline, *others = ([lp for lp, _ in lm.loglikelihood(instances, disable_tqdm=True)] for lm in together)
    for lm, scores in zip(variants, others, strict=True):
        expected = []
        with lm.spliced.attached():
            for context, continuation in PAIRS:
                ids = torch.tensor([lm.tok_encode(context + continuation)])
                count = ids.shape[1] - len(lm.tok_encode(context))
                logits = lm.spliced.model(ids, use_cache=False).logits[0].log_softmax(-1)
                expected.append(float(logits[:-1].gather(-1, ids[0, 1:, None])[-count:].sum()))
        assert scores == pytest.approx(expected, abs=1e-4)
        assert scores != pytest.approx(baseline, abs=1e-3)
    with torch.no_grad():
        for lm in together[1:]:
            total = 0.0
            for context, continuation in PAIRS:
                ids = torch.tensor([lm.tok_encode(context + continuation)])
                count = ids.shape[1] - len(lm.tok_encode(context))
                before = model(ids, use_cache=False).logits[0, -count - 1 : -1].log_softmax(-1)
                with lm.spliced.attached():
                    after = model(ids, use_cache=False).logits[0, -count - 1 : -1].log_softmax(-1)
                total += float((before.exp() * (before - after)).sum())
            answers = lm.divergence.by_task()["task"]
            assert answers["kl"] * answers["positions"] == pytest.approx(total, rel=1e-3)


def test_nothing_is_left_behind():
    model, ids = random_model("llama"), random_ids()
    before = model(ids).logits
    lms = joined(adapter(model, sae=[], splice="none"), [adapter(model, edit=edit) for edit in EDITS.values()])
    from lm_eval.api.instance import Instance

    lms[1].loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in PAIRS], disable_tqdm=True)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("name", EDITS)
def test_texts_are_those_of_the_model_with_that_module(name):
    from lm_eval.api.instance import Instance

    model = random_model("llama")
    instances = [Instance("generate_until", {}, ("w3 w4 w5", {"until": [], "max_gen_toks": 6}), 0)]
    _, lm = joined(adapter(model, sae=[], splice="none"), [adapter(model, edit=EDITS[name])])
    (text,) = lm.generate_until(instances, disable_tqdm=True)
    ids = torch.tensor([lm.tok_encode("w3 w4 w5")])
    for _ in range(6):
        ids = torch.cat([ids, plainly(model, EDITS[name], ids)[:, -1:].argmax(-1)], 1)
        if int(ids[0, -1]) == 2:
            break
    assert text == lm.tok_decode(ids[0, 3:].tolist())


BAD = [
    (lambda _: {ATTENTION: nn.Identity()}, "fails: TypeError"),
    (lambda _: {ATTENTION: lambda hidden_states, **_: (hidden_states[..., :3], None)}, r"begins with \(2, 2, 3\)"),
    (lambda _: {ATTENTION: lambda hidden_states, **_: (hidden_states / 0, None)}, "values that are not finite"),
    (
        lambda _: {ATTENTION: lambda hidden_states, **_: hidden_states},
        r"gives a tuple of 2 that begins with \(2, 2, 32\), and",
    ),
    (lambda _: {"lm_head": nn.Linear(32, 7)}, r"gives \(2, 2, 101\), and its replacement \(2, 2, 7\)"),
    (lambda _: {"model": nn.Identity()}, "does not give a tensor, or a tuple that begins with one"),
]


@pytest.mark.parametrize(("edit", "message"), BAD)
def test_what_cannot_stand_there_is_told(edit, message):
    with pytest.raises(UserError, match=message):
        adapter(edit=edit)


def test_a_run_measures_them_on_text_and_on_tasks(tmp_path):
    def halved_head(model):
        return {"lm_head": nn.Sequential(copy.deepcopy(model.lm_head), Halved())}

    settings = {"tasks": "sae_world_reasoning,sae_fidelity_world", "limit": 3, "device": "cpu"}
    variants = [{"edit": halved_head, "name": "cooler"}, {"edit": "nf4"}, {"edit": "prune?share=0", "name": "nothing"}]
    comparison = run(model_args={"pretrained": "world"}, variants=variants, output_path=tmp_path / "out", **settings)
    drops = comparison.drops[comparison.drops["section"] == "overall"].set_index("variant")["drop"]
    assert drops["cooler"] == drops["nothing"] == 0  # half the logits have the same order
    measured = comparison.fidelity.set_index(["variant", "metric"])["value"]
    assert measured["cooler", "kl"] > 0.01
    assert measured["cooler", "ce_baseline"] == pytest.approx(measured["nothing", "ce_baseline"], abs=1e-6)
    assert measured["nothing", "kl"] == 0
    again = run(model_args={"pretrained": "world"}, variants=variants, output_path=tmp_path / "out", **settings)
    assert again.drops.equals(comparison.drops)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


# -- 4-bit NormalFloat ----------------------------------------------------------------------------------------


def test_the_codes_are_the_published_quantiles():
    """Dettmers et al. 2023, appendix E: quantiles of the normal between 0 and .9677083, 8 above 0 and 7 below."""
    positive = stats.norm.ppf(torch.linspace(0.9677083, 0.5, 9)[:-1].double().numpy())
    negative = -stats.norm.ppf(torch.linspace(0.9677083, 0.5, 8)[:-1].double().numpy())
    codes = sorted([*positive, 0.0, *negative])
    assert [code / max(codes) for code in codes] == pytest.approx(list(NF4), abs=2e-6)


def test_each_weight_becomes_the_nearest_code_of_its_block():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    new, flat = normal_float(weight, 64), weight.flatten()
    for start in range(0, len(flat), 64):
        block, codes = flat[start : start + 64], torch.tensor(NF4)
        most = block.abs().max()
        nearest = (block[:, None] - most * codes).abs().min(1)
        rounded = new.flatten()[start : start + 64]
        assert torch.equal((rounded - block).abs() <= nearest.values + 1e-6, torch.ones(len(block), dtype=torch.bool))
        assert len(rounded.unique()) <= 16
    assert torch.equal(new[0], weight[0])
    assert torch.equal(normal_float(new, 64), new)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("nf4?block=0", "block=0 must be a whole number of at least 1"),
        ("nf4?group=64", "edit=nf4 has no argument 'group'"),
        ("nf5", r"edit 'nf5' is unknown. Did you mean 'nf4'\?"),
    ],
)
def test_a_wrong_nf4_is_told(edit, message):
    with pytest.raises(UserError, match=message):
        adapter(edit=edit)
