"""Delta CE from documents, and the intervals that documents and law parameters make together."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling import (
    DeltaCE,
    delta_from_documents,
    delta_from_losses,
    effective_compute,
    get_law,
    get_original,
    read_document_losses,
)

BESIROGLU = get_law("besiroglu2024")
DRAWS = Path(__file__).parent / "data" / "besiroglu2024_draws.json"


def test_joint_uncertainty_agrees_with_bootstrap_draws_of_the_fit():
    """The interval from the covariance against percentiles of 300 refits, carried to the published point."""
    table = json.loads(DRAWS.read_text())
    assert table["order"] == ["lnA", "lnB", "lnE", "alpha", "beta"]
    point = np.array([math.log(482.01), math.log(2085.43), math.log(1.8172), 0.3478, 0.3658])
    log_a, log_b, _, alpha, beta = (np.array(table["draws"]) - table["theta"] + point).T
    for model, rise in (("pythia-2.8b", 0.1626), ("google/gemma-7b", 0.1185), ("pythia-70m", 0.55)):
        original = get_original(model=model)
        reducible = np.exp(log_a) * original.params**-alpha + np.exp(log_b) * original.tokens**-beta
        logs = -(alpha + beta) / (alpha * beta) * np.log1p(rise / reducible)
        expected = np.quantile(logs, [0.025, 0.975])
        interval = effective_compute(DeltaCE(value=rise), model=model).estimates[0].interval
        width = expected[1] - expected[0]
        assert np.log([interval.low, interval.high]) == pytest.approx(expected, abs=0.15 * width)


def test_independent_parameters_would_be_far_wider():
    """What joint sampling is for: without the correlations the interval is many times too wide."""
    law = BESIROGLU
    apart = dataclasses.replace(
        law, covariance=dataclasses.replace(law.covariance, matrix=np.diag(np.diag(law.covariance.matrix)))
    )
    joint, separate = (
        effective_compute(DeltaCE(value=0.1626), model="pythia-2.8b", law=either).estimates[0].interval
        for either in (law, apart)
    )
    assert math.log(separate.high / separate.low) > 5 * math.log(joint.high / joint.low)


def test_draws_of_documents_spread_as_the_ratio_estimator_does():
    """Against the textbook standard error of a ratio, and wider by Student's t for few documents."""
    rng = np.random.default_rng(2)
    for documents, wider in ((2000, 1.0), (8, math.sqrt(7 / 5))):
        tokens = rng.integers(200, 300, documents).astype(float)
        rise = rng.normal(0.2, 0.5, documents) * tokens
        delta = delta_from_documents(baseline_nats=3 * tokens, spliced_nats=3 * tokens + rise, tokens=tokens)
        residual = rise - delta.value * tokens
        error = math.sqrt(documents / (documents - 1) * np.sum(residual**2)) / tokens.sum()
        drawn = delta.draw(20_000, rng=rng)
        assert drawn.std() == pytest.approx(wider * error, rel=0.05)
        assert drawn.mean() == pytest.approx(delta.value, abs=0.1 * error)


def test_documents_and_law_enter_one_interval():
    rng = np.random.default_rng(1)
    tokens = rng.integers(50, 400, 200)
    baseline = 3.0 * tokens
    rise = rng.normal(0.15, 0.3, 200) * tokens
    delta = delta_from_documents(baseline_nats=baseline, spliced_nats=baseline + rise, tokens=tokens)
    assert delta.value == pytest.approx(rise.sum() / tokens.sum())
    both = effective_compute(delta, params=1e9, tokens=2e10).estimates[0].interval
    law_only = effective_compute(DeltaCE(value=delta.value), params=1e9, tokens=2e10).estimates[0].interval
    fixed = dataclasses.replace(BESIROGLU, covariance=None)
    documents_only = effective_compute(delta, params=1e9, tokens=2e10, law=fixed).estimates[0].interval
    assert both.covers == ("documents", "curve parameters")
    assert documents_only.covers == ("documents",)
    assert law_only.covers == ("curve parameters",)
    widths = [math.log(i.high / i.low) for i in (both, documents_only, law_only)]
    assert widths[0] == pytest.approx(math.hypot(widths[1], widths[2]), rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    def interval(seed):
        delta = delta_from_losses(ce_baseline=3.0, ce_spliced=3.1, standard_error=0.01)
        return effective_compute(delta, params=1e9, tokens=2e10, rng=seed).estimates[0].interval

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)


@settings(max_examples=20)
@given(scale=st.floats(0.1, 10))
def test_delta_of_documents_does_not_change_when_all_are_repeated(scale):
    nats, tokens = np.array([3.0, 7.0, 5.0]), np.array([1.0, 2.0, 2.0])
    once = delta_from_documents(baseline_nats=nats, spliced_nats=nats * scale, tokens=tokens)
    twice = delta_from_documents(
        baseline_nats=np.tile(nats, 2), spliced_nats=np.tile(nats * scale, 2), tokens=np.tile(tokens, 2)
    )
    assert twice.value == pytest.approx(once.value, abs=1e-12)


def test_no_uncertainty_given_and_none_published_means_no_interval():
    estimate = effective_compute(ce_baseline=3, ce_spliced=3.1, params=1e9, tokens=2e10, law="hoffmann2022")
    assert estimate.estimates[0].interval is None
    assert any("parameters are held fixed" in flag for flag in estimate.estimates[0].flags)


def test_a_skewed_interval_may_have_an_open_side():
    """Draws of delta CE beyond the floor leave the upper side open instead of being dropped."""
    delta = delta_from_losses(ce_baseline=3.0, ce_spliced=3.0, standard_error=0.5)
    interval = effective_compute(delta, params=1e10, tokens=1e12).estimates[0].interval
    assert interval.high is None
    assert interval.low is not None


def test_documents_from_a_file(tmp_path):
    path = tmp_path / "documents.csv"
    path.write_text("baseline_nats,spliced_nats,tokens\n30,33,10\n50,54,20\n")
    assert read_document_losses(path).value == pytest.approx(7 / 30)
    assert "fewer than 30 documents" in read_document_losses(path).caveats[0]
    path.write_text("baseline_nats,spliced_nats,tokens\n30,,10\n50,54,20\n")
    with pytest.raises(UserError, match="it must be a valid number"):
        read_document_losses(path)
    path.write_text("baseline_nats,tokens\n30,10\n")
    with pytest.raises(UserError, match=r"lacks the column spliced_nats\. It has: baseline_nats, tokens"):
        read_document_losses(path)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (([1, 2], [1, 2], [1]), "three lists of one length.*got lengths 2, 2 and 1"),
        (([1], [1], [1]), "One document cannot be resampled"),
        (([1, 2], [1, 2], [1, 0]), "Document 1 has no tokens"),
        (([1, math.inf], [1, 2], [1, 1]), "not finite"),
    ],
)
def test_wrong_documents_are_named(lists, message):
    baseline, spliced, tokens = lists
    with pytest.raises(UserError, match=message):
        delta_from_documents(baseline_nats=baseline, spliced_nats=spliced, tokens=tokens)
