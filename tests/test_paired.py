"""Paired drops: laws, agreement with statsmodels, and the coverage of the interval."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from sae_lm_eval.comparison.paired_statistics import (
    Stratum,
    accuracy_change,
    bonett_price_interval,
    continuous_change,
    mcnemar,
    mean_change,
    paired_drop,
    tango_interval,
)
from sae_lm_eval.comparison.share_lost import share_lost_interval

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 200))


@given(COUNTS)
def test_the_interval_holds_the_estimate_and_mirrors(counts):
    lost, gained, same = counts
    n = lost + gained + same
    low, high = tango_interval(lost, gained, n)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    assert tango_interval(gained, lost, n) == pytest.approx((-high, -low), abs=1e-8)


@given(COUNTS)
def test_it_leaves_zero_out_exactly_when_mcnemars_score_test_rejects(counts):
    lost, gained, same = counts
    if lost + gained == 0:
        return
    p = statsmodels_mcnemar([[0, lost], [gained, 0]], exact=False, correction=False).pvalue
    if abs(p - 0.05) < 1e-9:
        return
    low, high = tango_interval(lost, gained, lost + gained + same)
    assert (low > 0 or high < 0) == (p < 0.05)


def test_more_questions_narrow_it():
    widths = [np.diff(tango_interval(5 * k, 2 * k, 50 * k))[0] for k in (1, 4, 16)]
    assert widths[0] > 1.8 * widths[1] > 3.2 * widths[2]


@pytest.mark.parametrize(
    ("n", "lost", "gained"), [(50, 0.05, 0.05), (50, 0.15, 0.05), (200, 0.04, 0.02), (1000, 0.12, 0.02)]
)
def test_coverage(n, lost, gained):
    draws = 2000
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, [lost, gained, 1 - lost - gained], size=draws)
    truth = lost - gained
    held = sum(low <= truth <= high for low, high in (tango_interval(a, b, n) for a, b, _ in counts))
    assert held / draws > 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws) - 0.005


def test_a_table_by_hand():
    before = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    after = [1, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    drop = paired_drop(before, after)
    assert (drop.n, drop.lost, drop.gained) == (10, 3, 1)
    assert (drop.baseline, drop.variant) == (0.6, 0.4)
    assert drop.drop == pytest.approx(20)
    assert drop.p == pytest.approx(stats.binomtest(1, 4).pvalue)


def test_nothing_changed():
    drop = paired_drop([1, 0, 1], [1, 0, 1])
    assert (drop.drop, drop.p) == (0, 1)
    assert drop.low < 0 < drop.high


@pytest.mark.parametrize(("before", "after"), [([1, 0], [1]), ([], [])])
def test_answers_that_do_not_pair_are_refused(before, after):
    with pytest.raises(ValueError, match="must be two lists of one length"):
        paired_drop(before, after)


# -- tasks with weights ---------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)


def right(n: int, accuracy: float) -> np.ndarray:
    return RNG.binomial(1, accuracy, n).astype(float)


def test_documents_that_count_alike_are_one_sample():
    strata = [Stratum(n / 90, right(n, 0.8), right(n, 0.6)) for n in (20, 70)]
    change = accuracy_change(strata, level=0.9, draws=10, seed=0)
    pooled = [np.concatenate([getattr(s, side) for s in strata]) for side in ("baseline", "variant")]
    drop = paired_drop(*pooled, level=0.9)
    assert [100 * change.drop, 100 * change.low, 100 * change.high] == pytest.approx([drop.drop, drop.low, drop.high])
    assert change.p == drop.p


def test_one_task_is_bonett_and_prices_interval():
    """Their formula: one lost and one gained document more, n + 2 documents."""
    low, high = bonett_price_interval([1.0], [12], [4], [60])
    more, fewer = 13 / 62, 5 / 62
    half = stats.norm.ppf(0.975) * np.sqrt((more + fewer - (more - fewer) ** 2) / 62)
    assert [low, high] == pytest.approx([more - fewer - half, more - fewer + half])


def swaps(strata: list[Stratum]) -> np.ndarray:
    """The drop under every way of swapping baseline and variant, document by document."""
    counts = [len(s.baseline) for s in strata]
    drops = []
    for flat in itertools.product((False, True), repeat=sum(counts)):
        drop = 0.0
        for stratum, swap in zip(strata, np.split(np.array(flat), np.cumsum(counts)[:-1]), strict=True):
            before = np.where(swap, stratum.variant, stratum.baseline).sum()
            after = np.where(swap, stratum.baseline, stratum.variant).sum()
            drop += stratum.weight * (stratum.score(before) - stratum.score(after))
        drops.append(drop)
    return np.array(drops)


@pytest.mark.parametrize("change_of", [accuracy_change, continuous_change])
def test_the_permutation_agrees_with_all_swaps(change_of):
    if change_of is accuracy_change:
        strata = [
            Stratum(0.5, np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 1, 0])),
            Stratum(0.5, np.array([1.0, 1, 0, 1, 1, 0, 1, 1]), np.array([0.0, 1, 1, 0, 0, 0, 0, 1])),
        ]
    else:
        sizes = RNG.integers(5, 50, 7).astype(float)
        strata = [
            Stratum(0.5, RNG.normal(size=4), RNG.normal(-0.5, size=4)),
            Stratum(0.5, -3 * sizes, -3.2 * sizes + RNG.normal(size=7), sizes, lambda mean: np.exp(-mean)),
        ]
    change = change_of(strata, level=0.95, draws=40_000, seed=1)
    every = swaps(strata)
    exact = np.mean(np.abs(every) >= abs(change.drop) - 1e-9)
    assert change.p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000) + 1e-4)


def test_the_exact_mcnemar_agrees_with_all_swaps():
    before, after = np.array([1.0] * 7 + [0, 1, 0, 1]), np.array([0.0] * 7 + [1, 1, 0, 0])
    every = swaps([Stratum(1.0, before, after)])
    assert mcnemar(8, 1) == pytest.approx(np.mean(np.abs(every) >= before.mean() - after.mean() - 1e-9))


def test_the_bootstrap_of_normal_scores_is_students_interval():
    before, after = RNG.normal(size=400), RNG.normal(0.2, size=400)
    change = continuous_change([Stratum(1.0, before, after)], level=0.95, draws=20_000, seed=0)
    student = stats.ttest_rel(before, after).confidence_interval()
    assert [change.low, change.high] == pytest.approx([student.low, student.high], rel=0.1)
    assert change.drop == pytest.approx(before.mean() - after.mean())


def test_the_bootstrap_of_a_ratio_has_scipys_width():
    sizes = RNG.integers(20, 200, 150).astype(float)
    before, after = -sizes * RNG.normal(3, 0.2, 150), -sizes * RNG.normal(3.1, 0.2, 150)
    stratum = Stratum(1.0, before, after, sizes, lambda mean: np.exp(-mean))
    change = continuous_change([stratum], level=0.95, draws=5000, seed=0)

    def drop(b: np.ndarray, a: np.ndarray, s: np.ndarray) -> float:
        return np.exp(-b.sum() / s.sum()) - np.exp(-a.sum() / s.sum())

    scipys = stats.bootstrap(
        (before, after, sizes), drop, paired=True, vectorized=False, n_resamples=2000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert change.high - change.low == pytest.approx(scipys.high - scipys.low, rel=0.1)
    assert change.drop == pytest.approx(drop(before, after, sizes))


def test_mean_change_is_students_for_one_task_and_welchs_for_two():
    first, second = (Stratum(0.5, RNG.normal(size=n), RNG.normal(1, size=n)) for n in (20, 35))
    paired = stats.ttest_1samp(first.variant - first.baseline, 0)
    change = mean_change([Stratum(1.0, first.baseline, first.variant)], level=0.95)
    assert change == pytest.approx([(first.variant - first.baseline).mean(), *paired.confidence_interval()])
    welch = stats.ttest_ind(first.variant - first.baseline, second.baseline - second.variant, equal_var=False)
    bounds = welch.confidence_interval()
    assert mean_change([first, second], level=0.95)[1:] == pytest.approx([bounds.low / 2, bounds.high / 2])


def test_one_document_has_no_interval():
    lonely = [Stratum(1.0, np.array([0.3]), np.array([0.1]))]
    assert np.isnan(
        [*mean_change(lonely, level=0.95)[1:], continuous_change(lonely, level=0.95, draws=9, seed=0).low]
    ).all()


# -- simulations: benchmarks/comparison_coverage.py at length -------------------------------------------------


def test_coverage_of_weighted_tasks():
    draws, weight, n = 2000, np.array([0.5, 0.5]), np.array([50, 300])
    rng = np.random.default_rng(0)
    counts = np.stack(
        [rng.multinomial(m, [a, 0.02, 0.98 - a], size=draws)[:, :2] for m, a in ((50, 0.15), (300, 0.05))], 1
    )
    bounds = np.array([bonett_price_interval(weight, row[:, 0], row[:, 1], n) for row in counts])
    held = (bounds[:, 0] <= 0.08) & (bounds[:, 1] >= 0.08)
    assert 0.93 < held.mean() < 0.98


def test_coverage_of_the_bootstrap():
    rng, held = np.random.default_rng(0), []
    for trial in range(400):
        sizes = np.exp(rng.uniform(3, 6, 50))
        before = -3 * sizes
        stratum = Stratum(1.0, before, before - sizes * rng.normal(0.1, 0.2, 50), sizes)
        change = continuous_change([stratum], level=0.95, draws=500, seed=trial)
        held.append(change.low <= 0.1 <= change.high)
    assert 0.91 < np.mean(held) < 0.98


def test_false_positives_over_57_categories():
    """Holm rejects something exactly when the smallest p is below .05 / 57."""
    rng = np.random.default_rng(0)
    lost, gained, _ = np.moveaxis(rng.multinomial(200, [0.15, 0.15, 0.7], size=(1000, 57)), -1, 0)
    pairs, index = np.unique(np.stack([lost.ravel(), gained.ravel()], 1), axis=0, return_inverse=True)
    p = np.array([mcnemar(int(a), int(b)) for a, b in pairs])[index].reshape(lost.shape)
    assert np.mean(57 * p.min(1) < 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


# -- few documents, logarithms, and shares ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4])
def test_fewer_than_five_documents_have_no_bootstrap_interval(n):
    change = continuous_change([Stratum(1.0, RNG.normal(size=n), RNG.normal(size=n))], level=0.95, draws=200, seed=0)
    assert np.isnan([change.low, change.high]).all()
    assert change.caution == f"n/a: a task has {n} documents, and the interval needs 5"
    assert change.p >= 2 ** (1 - n) * 0.8


@pytest.mark.parametrize("n", [5, 10])
def test_few_documents_are_flagged_and_the_interval_still_holds_the_truth(n):
    rng, held = np.random.default_rng(0), 0
    for seed in range(400):
        before = rng.normal(size=n)
        after = before - 0.3 + rng.normal(size=n)
        change = continuous_change([Stratum(1.0, before, after)], level=0.95, draws=400, seed=seed)
        assert change.caution.startswith(f"a task has {n} documents, fewer than 20")
        held += change.low <= 0.3 <= change.high
    assert held / 400 >= 0.92


def test_documents_that_all_changed_alike_tell_no_spread():
    before = RNG.normal(size=30)
    change = continuous_change([Stratum(1.0, before, before - 1)], level=0.95, draws=200, seed=0)
    assert np.isnan([change.low, change.high]).all()
    assert "every document changed alike" in change.caution
    assert np.isnan(mean_change([Stratum(1.0, before, before - 1)], level=0.95)[1:]).all()


def test_too_few_changed_documents_bound_nothing():
    """Of 50 documents one changed: a third of the resamples are without it, and with them goes any bound."""
    before = np.full(50, 1.0)
    after = np.r_[0.5, before[1:]]
    change = continuous_change([Stratum(1.0, before, after)], level=0.95, draws=500, seed=0)
    assert change.caution == "n/a: too few documents changed"
    after = np.r_[np.linspace(0.2, 0.8, 12), before[12:]]
    change = continuous_change([Stratum(1.0, before, after)], level=0.95, draws=500, seed=0)
    assert 0 < change.low < change.drop < change.high


def test_a_perplexity_is_compared_by_its_logarithm():
    """Nats by document and their mean: the interval is that of the mean itself, and never below a ratio of 0."""
    before, after = -RNG.normal(3, 0.3, 40), -RNG.normal(16, 4, 40)
    log = continuous_change(
        [Stratum(1.0, before, after, scale=lambda mean: -mean, form="log")], level=0.95, draws=2000, seed=0
    )
    plain = continuous_change([Stratum(1.0, -before, -after)], level=0.95, draws=2000, seed=0)
    assert [log.drop, log.low, log.high] == pytest.approx([plain.drop, plain.low, plain.high])
    assert log.variant == pytest.approx(np.exp(-after.mean()))
    assert log.p == plain.p
    rise = stats.ttest_rel(-after, -before).confidence_interval()
    assert sorted((-log.low, -log.high)) == pytest.approx([rise.low, rise.high], rel=0.1)


def test_a_group_of_perplexities_is_the_logarithm_of_their_weighted_mean():
    """Against scipy's bootstrap of log(sum of weight x perplexity), task by task."""
    rng = np.random.default_rng(8)
    nats = [(rng.normal(3, 0.4, 60), rng.normal(3.3, 0.4, 60)), (rng.normal(5, 0.8, 30), rng.normal(5.1, 0.8, 30))]
    strata = [Stratum(0.5, -b, -v, scale=lambda mean: -mean, form="log") for b, v in nats]
    change = continuous_change(strata, level=0.95, draws=4000, seed=0)

    def rise(index):
        before, after = (
            np.log(np.mean([np.exp(pair[side][i].mean()) for pair, i in zip(nats, index, strict=True)]))
            for side in (0, 1)
        )
        return after - before

    assert -change.drop == pytest.approx(rise([slice(None)] * 2))
    drawn = [rise([rng.integers(0, n, n) for n in (60, 30)]) for _ in range(3000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert change.high - change.low == pytest.approx(high - low, rel=0.15)


def test_strata_of_two_or_three_documents_are_flagged():
    sizes = (2, 60)
    strata = [Stratum(0.5, right(n, 0.8), right(n, 0.6)) for n in sizes]
    change = accuracy_change(strata, level=0.95, draws=100, seed=0)
    assert change.caution.startswith("a task has 2 of its documents, fewer than 4")
    strata[0] = Stratum(0.5, right(4, 0.8), right(4, 0.6))
    assert accuracy_change(strata, level=0.95, draws=100, seed=0).caution == ""


def fiellers(theta: np.ndarray, before: np.ndarray, after: np.ndarray, chance: float) -> np.ndarray:
    """The statistic of each share, straight from its definition; one lost and one gained document are added."""
    drop = np.r_[before - after, 1, -1]
    above = np.r_[before, 1, 0] - chance
    rest = drop - theta[:, None] * above
    return rest.mean(1) / (rest.std(1) / np.sqrt(len(drop)))


def test_the_share_lost_is_the_set_of_shares_that_are_not_refuted():
    before, after = right(80, 0.9), right(80, 0.7)
    (low, high) = share_lost_interval([Stratum(1.0, before, after)], [np.full(80, 0.25)], level=0.95)
    z = stats.norm.ppf(0.975)
    assert np.abs(fiellers(np.array([low, high]), before, after, 0.25)) == pytest.approx([z, z])
    inside = fiellers(np.linspace(low, high, 7)[1:-1], before, after, 0.25)
    assert (np.abs(inside) < z).all()


@pytest.mark.parametrize(("n", "lost", "gained"), [(30, 0.1, 0.02), (100, 0.02, 0.02), (400, 0.3, 0.03)])
def test_the_interval_of_the_share_lost_holds_the_truth(n, lost, gained):
    rng, chance, base = np.random.default_rng(1), 0.25, 0.7
    truth = (lost - gained) / (base - chance)
    held = []
    for both, less, more, none in rng.multinomial(n, [base - lost, lost, gained, 1 - base - gained], size=1500):
        before = np.repeat([1.0, 1, 0, 0], [both, less, more, none])
        after = np.repeat([1.0, 0, 1, 0], [both, less, more, none])
        low, high = share_lost_interval([Stratum(1.0, before, after)], [np.full(n, chance)], level=0.95)
        if not np.isnan(low):
            held.append(low <= truth <= high)
    assert np.mean(held) > 0.94


def test_no_share_is_told_of_a_baseline_that_may_be_at_chance():
    bounds = share_lost_interval([Stratum(1.0, right(12, 0.4), right(12, 0.3))], [np.full(12, 0.4)], level=0.95)
    assert np.isnan(bounds).all()
