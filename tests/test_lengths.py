"""What depends on the length of a whole sequence is found, and then no sequence is scored beside a longer one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from models import ARCHITECTURES, COMMON, VOCABULARY, WIDTH, random_model, random_sae
from test_scoring import assert_equal, variant

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.scoring import lengths as module
from sae_lm_eval.scoring.lengths import Lengths, lengths_of
from sae_lm_eval.scoring.request import Query, ScoreRequest
from sae_lm_eval.scoring.scorer import Layout, Scorer
from sae_lm_eval.splicing.variants import Choices, build_variant

BOUNDARY = 28  # beyond what layouts are tried with
LONG = {"original_max_position_embeddings": BOUNDARY, "max_position_embeddings": 64}
ROPE = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.5, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": BOUNDARY,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": BOUNDARY,
    },
}


def rotary(rope: str) -> transformers.PreTrainedModel:
    shape = {**COMMON, "max_position_embeddings": BOUNDARY if rope == "dynamic" else 64}
    kind, extra = ("phi3", {**LONG, "pad_token_id": 0}) if rope == "longrope" else ("llama", {})
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](**{**shape, **extra}, rope_parameters=ROPE[rope])
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.mul_(8)
    return model


def across(header: int = 20) -> list[Query]:
    """A header short of the boundary; behind it questions that end on both sides of it, the longest not the last."""
    rng = np.random.default_rng(0)
    head = rng.integers(3, VOCABULARY, header).tolist()
    out = []
    for tail in (2, 30, 8, 3, 17, 2, 8):
        ids = head + rng.integers(3, VOCABULARY, tail).tolist()
        out.append(Query(ids, ids[-2:]))
    return out


@torch.no_grad()
def fresh(rope: str, variants, queries: list[Query]) -> None:
    """Compare with a model of its own for every sequence, which has seen nothing else."""
    model = rotary(rope)
    scores: dict = {}
    spliced = [variant(model, "blocks.1.hook_resid_post", mode=mode) for mode in variants]
    Scorer(model, spliced, rows=4, limit=64).score(ScoreRequest(queries), scores.update)
    for number, query in enumerate(queries):
        logits = rotary(rope)(input_ids=torch.tensor([list(query.ids)])).logits[0, -len(query.targets) :]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(query.targets)[:, None])[:, 0].numpy()
        for of_model in scores[number].logprob:
            np.testing.assert_allclose(of_model, expected, atol=1e-4)


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_splices_that_change_nothing_change_nothing_across_a_boundary(rope):
    fresh(rope, ["with_error"], across())


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_sequences_are_scored_whole_and_beside_none_of_another_length(rope):
    model = rotary(rope)
    scorer = Scorer(model, [variant(model, "blocks.1.hook_resid_post")], rows=4, limit=64)
    assert scorer.layout == Layout(prefixes=False, rows=False, last_block=False, uneven=False)
    assert str(scorer.layout) == "sharing blocks, sequences of one length at a time"


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_nothing_is_lost_where_no_sequence_reaches_the_boundary(rope):
    model = rotary(rope)
    scorer = Scorer(model, [variant(model, "blocks.1.hook_resid_post")], rows=4, limit=BOUNDARY)
    assert scorer.layout == Layout()


@pytest.mark.parametrize("rope", ["linear", "yarn"])
def test_scaling_that_does_not_depend_on_length_is_shared(rope):
    model = rotary(rope)
    scorer = Scorer(model, [variant(model, "blocks.1.hook_resid_post")], rows=4, limit=64)
    assert scorer.layout == Layout()
    assert_equal(scorer, across())


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_tables_alone_tell_where_the_model_is_too_large_to_try(rope, monkeypatch):
    monkeypatch.setattr(module, "AFFORDABLE", {"cpu": 0})
    model = rotary(rope)
    assert Lengths(model, model.model, 64).matter()
    assert not Lengths(model, model.model, BOUNDARY).matter()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_ordinary_architecture_depends_on_length(name):
    model = random_model(name)
    assert not Lengths(model, Scorer(model, [], rows=1, limit=64).head.trunk, 64).matter()


def test_a_model_that_looks_ahead_is_found():
    torch.manual_seed(0)
    config = transformers.BertConfig(**{k: v for k, v in COMMON.items() if k != "num_key_value_heads"})
    model = transformers.BertLMHeadModel(config).eval()
    assert Lengths(model, model.bert, 64).matter()


def test_every_length_that_a_configuration_names_is_a_boundary():
    config = {
        "max_position_embeddings": 4096,
        "rope_parameters": {"full_attention": {"original_max_position_embeddings": 128}, "factor": 4},
        "sliding_window": 32,
        "hidden_size": 99,
        "use_max": True,
    }
    assert sorted(lengths_of(config)) == [32, 128, 4096]


def test_a_dictionary_that_looks_at_all_of_its_sequence_is_shown_no_padding():
    """Whatever it looks at: the mean of a sequence is another one with padding in it."""
    model = random_model("llama")
    own = torch.nn.Linear(WIDTH, WIDTH)

    def around_the_mean(x):
        return 0.5 * x + 0.5 * x.mean(1, keepdim=True)

    hook = "blocks.1.hook_resid_post"
    dictionary = load_dictionary(
        Dictionary("mean", own, around_the_mean, around_the_mean, "own", *[WIDTH] * 3, hook, hook)
    )
    scorer = Scorer(model, [build_variant(model, [dictionary], Choices(), frozenset())], rows=4, limit=64)
    assert not scorer.layout.uneven
    assert_equal(scorer, across())


def test_a_temporal_dictionary_is_known_to_share_nothing():
    model = random_model("llama")
    dictionary = load_dictionary(random_sae(WIDTH, "blocks.1.hook_resid_post", "temporal"))
    scorer = Scorer(model, [build_variant(model, [dictionary], Choices(), frozenset())], rows=4, limit=64)
    assert scorer.layout == Layout(prefixes=False, rows=False, last_block=False, uneven=False)
    assert_equal(scorer, across())
