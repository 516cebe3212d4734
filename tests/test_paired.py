"""Paired drops: laws, agreement with statsmodels, and the coverage of the interval."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from sae_lm_eval.paired import paired_drop, tango_interval

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


def test_it_takes_neither_torch_nor_lm_eval():
    code = "import sys, sae_lm_eval.paired; print('torch' in sys.modules, 'lm_eval' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]
