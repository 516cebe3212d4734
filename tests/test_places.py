"""A class of positions keeps its activations, or is spliced alone: what the forked pass gives for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import random_model
from test_scoring import queries, variant

from sae_lm_eval.attribution.directions import Moments
from sae_lm_eval.attribution.patches import _Norms
from sae_lm_eval.scoring.request import Query, ScoreRequest
from sae_lm_eval.scoring.scorer import LAYOUTS, Scorer
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.places import Places, error_norm
from sae_lm_eval.splicing.splice import Variant

BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}
HOOK = "blocks.1.hook_resid_post"
ALL = frozenset({0, 1, 2})


def labelled(questions: list[Query]) -> list[Query]:
    """A label for each token, which the tokens before it do not tell, so that no beginning may be shared blindly."""
    rng = np.random.default_rng(1)
    return [Query(query.ids, query.targets, rng.integers(0, 3, len(query.ids)).tolist()) for query in questions]


def scores(model, variants: list[Variant], questions: list[Query], layout=None) -> np.ndarray:
    """Log-probabilities (queries, models), summed over targets."""
    scored = {}
    Scorer(model, variants, rows=4, limit=64, layout=layout).score(ScoreRequest(questions), scored.update)
    return np.array([scored[number].logprob.sum(1) for number in range(len(questions))])


def at(spliced: Variant, **places) -> Variant:
    return replace(spliced, places=Places(**places))


@torch.no_grad()
def by_hand(model, architecture: str, spliced: Variant, query: Query, restored: set[int]) -> float:
    """One hook of torch's on one block, in which nothing of the package but the dictionary itself takes part."""
    (splice,) = spliced.splices
    ids = torch.tensor([query.ids])
    kept = torch.tensor(
        [[token in (0, 1, 2) or label in restored for token, label in zip(query.ids, query.labels, strict=True)]]
    )

    def hook(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        new = torch.where(kept[..., None], hidden, splice.dictionary.module(hidden))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.get_submodule(f"{BLOCKS[architecture]}.1").register_forward_hook(hook)
    try:
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(query.targets) :]
    finally:
        handle.remove()
    return float(logits.log_softmax(-1).gather(-1, torch.tensor(query.targets)[:, None]).sum())


@pytest.mark.parametrize("architecture", BLOCKS)
def test_a_restored_class_is_what_a_plain_hook_gives(architecture):
    model, questions = random_model(architecture), labelled(queries())
    spliced = variant(model, HOOK)
    scored = scores(model, [at(spliced, labels=frozenset({1}), outside=True)], questions)[:, 1]
    np.testing.assert_allclose(scored, [by_hand(model, architecture, spliced, q, {1}) for q in questions], atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_error_restored_everywhere_is_the_baseline_and_nowhere_the_variant(layout):
    model, questions = random_model("gpt2"), labelled(queries())
    spliced = variant(model, HOOK)
    scored = scores(
        model,
        [spliced, at(spliced, labels=ALL, outside=True), at(spliced, labels=frozenset(), outside=True)],
        questions,
        layout,
    )
    baseline, whole, everywhere, nowhere = scored.T
    np.testing.assert_array_equal(everywhere, baseline)
    np.testing.assert_array_equal(nowhere, whole)
    assert np.abs(whole - baseline).max() > 0.1


def test_restoring_a_class_is_splicing_the_other_classes_alone():
    model, questions = random_model("llama"), labelled(queries())
    for mode in ("reconstruction", "random_error", "zero"):
        spliced = variant(model, HOOK, mode=mode)
        pairs = [(frozenset({label}), ALL - {label}) for label in ALL]
        variants = [each for a, b in pairs for each in (at(spliced, labels=a, outside=True), at(spliced, labels=b))]
        scored = scores(model, variants, questions)[:, 1:]
        np.testing.assert_array_equal(scored[:, 0::2], scored[:, 1::2])


def test_classes_by_the_norm_of_the_error_divide_the_positions():
    model, questions = random_model("llama"), queries()
    spliced = variant(model, HOOK)
    hidden = model(input_ids=torch.tensor([questions[-2].ids]), output_hidden_states=True).hidden_states[2]
    edge = float(error_norm(hidden, spliced.splices[0].dictionary.module(hidden)).median())
    below, above = {HOOK: (0.0, edge)}, {HOOK: (edge, float("inf"))}
    variants = [spliced, at(spliced, norms=below), at(spliced, norms=above, outside=True), at(spliced, norms=above)]
    baseline, whole, only_below, without_above, only_above = scores(model, variants, questions).T
    np.testing.assert_array_equal(only_below, without_above)
    for part in (only_below, only_above):
        assert np.abs(part - baseline).max() > 1e-3 < np.abs(part - whole).max()


def test_a_class_of_sites_is_the_variant_of_these_sites():
    model, questions = random_model("gpt2"), queries()
    hooks = ("blocks.0.hook_resid_post", HOOK)
    both = variant(model, *hooks)
    alone = [Variant((splice,), both.special_ids) for splice in both.splices]
    scored = scores(model, [*(at(both, hooks=frozenset({hook})) for hook in hooks), *alone], questions)[:, 1:]
    np.testing.assert_allclose(scored[:, :2], scored[:, 2:], atol=2e-5)


def test_a_dictionary_encodes_once_for_all_classes_of_a_pass(monkeypatch):
    model, questions = random_model("gpt2"), labelled(queries())
    spliced = variant(model, HOOK)
    dictionary = spliced.splices[0].dictionary
    calls = []
    counted = replace(dictionary, reconstruct=lambda x: calls.append(len(x)) or dictionary.reconstruct(x))
    spliced = Variant((replace(spliced.splices[0], dictionary=counted),), spliced.special_ids)
    few, many = [at(spliced, labels=frozenset({1}))], [at(spliced, labels=frozenset({i})) for i in range(3)]
    counts = []
    for variants in (few, many):
        calls.clear()
        scores(model, variants, questions, LAYOUTS[0])
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_a_later_site_reads_what_the_first_has_left():
    model, questions = random_model("llama"), queries()
    hooks = (HOOK, "blocks.2.hook_resid_post")
    both = variant(model, *hooks)
    second = Variant(both.splices[1:], both.special_ids)
    together = scores(model, [both, both, second], questions)
    alone = np.concatenate([scores(model, [each], questions)[:, 1:] for each in (both, both, second)], axis=1)
    np.testing.assert_allclose(together[:, 1:], alone, atol=2e-5)
    assert np.abs(together[:, 1] - together[:, 3]).max() > 1e-2


def test_a_model_that_is_attached_to_without_labels_has_label_0():
    model = random_model("llama")
    spliced = variant(model, HOOK)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with attached(model, at(spliced, labels=frozenset({0}), outside=True)):
            assert torch.equal(model(input_ids=ids).logits, plain)
        with attached(model, at(spliced, labels=frozenset({1}))):
            assert torch.equal(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_fitted_has_never_seen_padding(layout):
    model, rng = random_model("gpt2"), np.random.default_rng(0)
    questions = [Query(rng.integers(3, 50, length).tolist(), [3]) for length in (4, 9, 17)]  # which begin differently
    spliced = Variant(variant(model, HOOK).splices)  # without special tokens, of which the padding's id is one
    norms, moments = _Norms(spliced), Moments(spliced)
    for watch in (norms, moments):
        scorer = Scorer(model, [spliced], rows=4, limit=64, layout=layout)
        scorer.score(ScoreRequest(questions, measures=(), greedy=False, watch=watch), lambda _scores: None)
    assert len({query.ids[0] for query in questions}) == 3
    assert sum(map(len, norms.by_hook[HOOK])) == moments.positions == 4 + 9 + 17


def test_moments_are_of_the_whole_error_where_half_of_it_is_made():
    model, questions = random_model("gpt2"), queries()
    covariances = []
    for scale in (1.0, 0.5):
        (splice,) = variant(model, HOOK).splices
        spliced = Variant((replace(splice, scale=scale),), variant(model, HOOK).special_ids)
        moments = Moments(spliced)
        Scorer(model, [spliced], rows=4, limit=64).score(
            ScoreRequest(questions, measures=(), greedy=False, watch=moments), lambda _scores: None
        )
        covariances.append(moments.by_hook[HOOK]["ee"])
    torch.testing.assert_close(covariances[0], covariances[1], rtol=1e-3, atol=1e-3)
