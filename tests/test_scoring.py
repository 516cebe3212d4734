"""Forked, prefix-shared and packed scores are those that the model and each variant give by themselves."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, LAYERS, VOCABULARY, WIDTH, random_model, random_sae

from sae_lm_eval import scoring
from sae_lm_eval.build import Choices, build_variant
from sae_lm_eval.dictionary import load
from sae_lm_eval.scoring import Layout, Scorer
from sae_lm_eval.splice import attached
from sae_lm_eval.walk import Query

SPECIAL = frozenset({0, 1, 2})


def variant(model, *hooks, mode="reconstruction", architecture="standard", seed=0):
    dictionaries = [load(random_sae(WIDTH, hook, architecture, seed=seed + i)) for i, hook in enumerate(hooks)]
    return build_variant(model, dictionaries, Choices(mode), SPECIAL)


def queries(*, header=30, stem=6, seed=0):
    """Few-shot headers with questions that have several answers; questions without; one that is part of another."""
    rng = np.random.default_rng(seed)

    def some(count):
        return rng.integers(3, VOCABULARY, count).tolist()

    out = []
    for _ in range(2):
        head = [1, *some(header)]
        for question in range(5):
            asked = head + some(stem + question % 3)
            for _ in range(3):
                answer = some(1 + question % 3)
                out.append(Query((asked + answer)[:-1], answer))
            out.append(Query(asked[:-1], asked[-3:]))
    whole = some(20)
    out.append(Query(whole[:-1], whole[1:]))
    out.append(Query(head[:12], head[5:13]))
    return out


@torch.no_grad()
def separately(model, variants, query):
    ids = torch.tensor([list(query.ids)])
    rows = []
    for each in (None, *variants):
        with attached(model, each) if each else contextlib.nullcontext():
            rows.append(model(input_ids=ids).logits[0, -len(query.targets) :].float().log_softmax(-1))
    return torch.stack(rows)


def assert_equal(scorer, asked, *, within=2e-5):
    found = {}
    scorer.score(asked, found.update)
    assert sorted(found) == list(range(len(asked)))
    model, variants = scorer.model, scorer.variants
    for number, query in enumerate(asked):
        scores = found[number]
        expected = separately(model, variants, query)
        targets = torch.tensor(query.targets)
        logprob = expected.gather(-1, targets.expand(len(expected), -1)[..., None])[..., 0].numpy()
        np.testing.assert_allclose(scores.logprob, logprob, atol=within)
        np.testing.assert_array_equal(scores.greedy, expected.argmax(-1) == targets)
        kl = (expected[0].exp() * (expected[0] - expected)).sum(-1)
        np.testing.assert_allclose(scores.measures["kl"], kl[1:].numpy(), atol=within)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_that_is_shared_changes_no_score(name, monkeypatch):
    monkeypatch.setattr(scoring, "CAPACITY", 40)
    model = random_model(name)
    last = f"blocks.{LAYERS - 1}.hook_resid_post"
    variants = [
        variant(model, "blocks.1.hook_resid_pre"),
        variant(model, last),
        variant(model, "blocks.0.hook_mlp_out", "blocks.2.hook_resid_pre", seed=3),
        variant(model, "blocks.1.hook_resid_post", mode="zero"),
        variant(model, "hook_embed", seed=4),
        variant(model, "blocks.1.hook_attn_out", mode="random_error", seed=5),
    ]
    scorer = Scorer(model, variants, rows=2, limit=64)
    asked = queries()
    assert scorer.layout == Layout()
    assert_equal(scorer, asked)
