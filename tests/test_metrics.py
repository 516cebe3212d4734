"""Metrics of fidelity from sums over documents, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sae_lm_eval.fidelity import metrics
from sae_lm_eval.fidelity.metrics import METRICS, Metric, array, metric_values, metrics_of, positive_ratio, row
from sae_lm_eval.results.fidelity_names import DICTIONARY_METRICS


def record(*, tokens: int, baseline: float, spliced: float, zero: float, mean: float | None = 9.0) -> dict:
    """Cross-entropies are per token here."""
    dictionary = {"positions": tokens, "l0": 3.0 * tokens, "squared_error": 1.0, "cosine": 0.5 * tokens}
    for within in ("text", "category"):
        dictionary |= {f"squared_deviation_{within}": 4.0, f"fired_first_{within}": 0.25, f"fired_only_{within}": 0.0}
    return {
        "category": None,
        "tokens": tokens,
        "bytes": 4 * tokens,
        "nll_baseline": baseline * tokens,
        "nll_spliced": spliced * tokens,
        "nll_zero": zero * tokens,
        "nll_mean": None if mean is None else mean * tokens,
        "nats_baseline": baseline * tokens,
        "nats_spliced": spliced * tokens,
        "kl": 0.1 * tokens,
        "kl_reverse": 0.2 * tokens,
        "agreement": tokens,
        "dictionaries": {"blocks.0.hook_resid_post": {**dictionary, "norm_ratio": 0.9 * tokens}},
    }


def test_documents_weigh_as_many_tokens_as_they_have():
    values = metric_values(
        [record(tokens=1, baseline=4, spliced=5, zero=9), record(tokens=3, baseline=2, spliced=2, zero=10)]
    )
    assert values["ce_baseline"] == pytest.approx(2.5)
    assert values["ce_spliced"] == pytest.approx(2.75)
    assert values["ce_delta"] == pytest.approx(0.25)
    assert values["ce_zero"] == pytest.approx(9.75)
    assert values["loss_recovered_zero"] == pytest.approx((9.75 - 2.75) / (9.75 - 2.5))
    assert values["bits_per_byte_baseline"] == pytest.approx(2.5 / np.log(2) / 4)
    assert values["l0"] == pytest.approx(3)
    assert values["fvu"] == pytest.approx(0.25)
    assert values["explained_variance"] == pytest.approx(0.75)
    assert values["fraction_fired"] == pytest.approx(0.5)


def test_loss_recovered_is_undefined_where_the_ablation_does_no_harm():
    harmless = [record(tokens=5, baseline=3, spliced=3.5, zero=2.9), record(tokens=5, baseline=3, spliced=4, zero=3)]
    values = metric_values(harmless)
    assert values["loss_recovered_zero"] is None
    assert values["loss_recovered_zero_stderr"] is None
    assert values["loss_recovered_mean"] is not None


def test_mean_ablation_without_a_mean_is_undefined():
    values = metric_values([record(tokens=5, baseline=3, spliced=4, zero=9, mean=None)])
    assert values["ce_mean"] is None
    assert values["loss_recovered_mean"] is None
    assert values["ce_zero"] == 9


def test_a_baseline_has_the_metrics_of_a_baseline_alone():
    alone = {"tokens": 2, "bytes": 8, "nll_baseline": 6.0, "nats_baseline": 6.0, "category": None}
    assert [name for name, *_ in metrics_of(alone)] == ["ce_baseline", "bits_per_byte_baseline"]


def test_several_dictionaries_have_names_of_their_own():
    of_two = record(tokens=2, baseline=1, spliced=2, zero=3)
    of_two["dictionaries"]["blocks.1.hook_resid_post"] = of_two["dictionaries"]["blocks.0.hook_resid_post"]
    names = [name for name, *_ in metrics_of(of_two)]
    assert "l0/blocks.0.hook_resid_post" in names
    assert "l0/blocks.1.hook_resid_post" in names
    assert "l0" not in names


class TestStandardErrors:
    def test_of_a_mean_is_that_of_the_textbook(self):
        values = np.random.default_rng(0).normal(size=400)
        rows = np.stack([values, np.ones(400)], axis=1)
        expected = values.std(ddof=1) / 20
        assert Metric(("x", "n"), positive_ratio, True).stderr(rows) == pytest.approx(expected, rel=0.08)

    def test_a_difference_is_paired(self):
        """Documents differ by much more than what a splice does to each."""
        rng = np.random.default_rng(1)
        baseline = rng.normal(3, 1, 200)
        documents = [record(tokens=10, baseline=b, spliced=b + 0.5, zero=9) for b in baseline]
        values = metric_values(documents)
        assert values["ce_delta_stderr"] == pytest.approx(0, abs=1e-12)
        assert values["ce_baseline_stderr"] > 0.05  # pyright: ignore[reportOperatorIssue]

    def test_there_is_none_for_one_document_or_no_resamples(self):
        rows = array([row(record(tokens=3, baseline=1, spliced=2, zero=3), METRICS["kl"], None)] * 2)
        assert METRICS["kl"].stderr(rows[:1]) is None
        assert METRICS["kl"].stderr(rows, 0) is None
        assert METRICS["kl"].stderr(rows) is not None

    def test_of_what_fired_is_the_jackknife(self):
        """Leaving out each document in turn, by hand: the fraction is 0.5, 0.4 and 0.7."""
        rows = np.array([[0.4, 0.2], [0.3, 0.3], [0.0, 0.0]])
        left = np.array([0.5, 0.4, 0.7])
        expected = np.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum())
        assert metrics.DICTIONARY_METRICS["fraction_fired"].stderr(rows) == pytest.approx(expected)


def test_the_names_that_readers_of_results_know_are_those_of_the_metrics():
    assert tuple(metrics.DICTIONARY_METRICS) == DICTIONARY_METRICS
