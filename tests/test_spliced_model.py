"""A loaded model with a variant on it, without lm_eval: what it says is what a plain forward pass says."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from models import WIDTH, random_model, random_sae, word_tokenizer, words

from sae_lm_eval.errors import UserError
from sae_lm_eval.results.variant_names import variant_name
from sae_lm_eval.scoring.loaded_model import LoadedModel, Settings
from sae_lm_eval.scoring.spliced_model import Group, SplicedModel
from sae_lm_eval.scoring.tokenization import Tokenization
from sae_lm_eval.splicing.arguments import requested_splices

RESID = "blocks.1.hook_resid_post"
CONTEXT = 24


def loaded(**settings) -> LoadedModel:
    return LoadedModel(random_model("llama"), word_tokenizer(), Settings(CONTEXT, rows=2, texts_at_once=2, **settings))


def spliced(model: LoadedModel | None = None, seed: int = 0, **how) -> SplicedModel:
    return SplicedModel(model or loaded(), requested_splices(random_sae(WIDTH, RESID, seed=seed), **how))


@torch.no_grad()
def plain(model: SplicedModel, ids: list[int], count: int) -> torch.Tensor:
    """Log-probabilities (count, vocabulary) of what follows the last positions."""
    return model.model(input_ids=torch.tensor([ids])).logits[0, -count:].log_softmax(-1)


def test_it_scores_as_a_plain_forward_pass_does():
    model = spliced()
    queries = [query for seed in range(3) for query in model.rolling(words(40, seed=seed))]
    with model.evaluation():
        answers = model.score(queries)
    for number, query in enumerate(queries):
        targets = torch.tensor(query.targets)[:, None]
        baseline = plain(model, list(query.ids), len(query.targets))
        with model.attached():
            variant = plain(model, list(query.ids), len(query.targets))
        assert answers.logprob[number] == pytest.approx(float(variant.gather(-1, targets).sum()), abs=1e-4)
        assert answers.greedy[number] == (variant.argmax(-1) == targets[:, 0]).all()
        kl = (baseline.exp() * (baseline - variant)).sum()
        assert answers.kl is not None
        assert answers.kl[number] == pytest.approx(float(kl), abs=1e-4)
    assert answers.targets.sum() == 3 * 40


def test_in_a_group_each_answers_as_by_itself():
    model, group = loaded(), Group(baseline_first=True)
    alone = [spliced(model, seed) for seed in (0, 1)]
    baseline = SplicedModel(model, requested_splices([], splice="none"))
    members = [spliced_model.in_group(group, wants_bos=False) for spliced_model in (baseline, *alone)]
    queries = alone[0].rolling(words(40, seed=5))
    answers = [member.score(queries) for member in members]
    for spliced_model, of_member in zip(alone, answers[1:], strict=True):
        np.testing.assert_allclose(of_member.logprob, spliced_model.score(queries).logprob, atol=1e-4)
    assert answers[0].kl is not None
    assert not answers[0].kl.any()
    assert answers[0].logprob.tolist() != answers[1].logprob.tolist()
    assert len({member.identity() for member in members}) == 3


def test_an_untouched_model_alone_is_left_to_lm_eval():
    assert not SplicedModel(loaded(), requested_splices([], splice="none")).is_scored
    assert spliced().is_scored


def test_a_part_of_what_is_asked_has_the_same_answers():
    model = spliced()
    queries = model.rolling(words(60, seed=1))
    answers = model.score(queries, ["a"] * len(queries))
    delivered = {}
    again = model.score(queries[:1], ["a"], answered=delivered.__setitem__)
    assert again.logprob[0] == answers.logprob[0]
    assert delivered == {0: (float(answers.logprob[0]), bool(answers.greedy[0]))}


def test_what_cannot_be_read_is_told():
    with pytest.raises(UserError, match=f"A continuation of 30 tokens cannot be scored, only one of 1 to {CONTEXT}"):
        spliced().query([5], list(range(30)))


@functools.cache
def tokenization() -> Tokenization:
    return loaded().tokenization(wants_bos=False)


@given(st.integers(0, 100), st.integers(1, 12))
def test_windows_are_lm_evals(size, length):
    tokens = tokenization()
    ids = list(range(10, 10 + size))
    theirs = get_rolling_token_windows(ids, tokens.prefix_token_id, length, 1)
    assert list(tokens.disjoint_windows(ids, length)) == [make_disjoint_window(window) for window in theirs]


@pytest.mark.parametrize(
    ("wants_bos", "add_bos_token", "adds", "said"),
    [
        (False, None, False, "lm_eval's default, which adds none"),
        (True, None, True, "one BOS token is added"),
        (True, False, False, "add_bos_token=False, as asked"),
        (True, True, False, "add_bos_token=True, as asked"),
    ],
)
def test_the_bos_policy(wants_bos, add_bos_token, adds, said):
    tokens = loaded(add_bos_token=add_bos_token).tokenization(wants_bos=wants_bos)
    assert tokens.adds_bos is adds
    assert tokens.bos_choice.startswith(said)
    assert (tokens.encode("w5 w6")[0] == tokens.tokenizer.bos_token_id) is adds


def test_a_variants_name():
    assert variant_name([], "none") == "baseline"
    assert variant_name(["a", "b"], "reconstruction", 1.0) == "a+b"
    assert variant_name(["a"], None) == "a"
    assert variant_name(["a"], "zero") == "a (zero)"
    layers = [f"clt:a/b#c/layer_{layer}" for layer in (0, 1, 2, 5)]
    assert variant_name(["x", *layers, "x"], None) == "x+clt:a/b#c/layer_0-2+clt:a/b#c/layer_5+x"
    assert variant_name(["a"], "reconstruction", 0.5) == "a (scale 0.5)"
    assert variant_name(["a"], "with_error", 2.0) == "a (with_error, scale 2)"
