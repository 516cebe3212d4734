"""Effective compute: identities and monotonicity, then the worked values, then what is refused or flagged."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling import (
    DeltaCE,
    Original,
    ParametricLaw,
    delta_from_losses,
    effective_compute,
    find_preset,
    get_law,
    presets,
)
from sae_lm_eval.scaling.estimate import Draws
from sae_lm_eval.scaling.law_estimates import law_relative

BESIROGLU = get_law("besiroglu2024")


def relative(rise, params, tokens, law=BESIROGLU):
    """The three fractions within a law at a rise of the loss."""
    drawn = Draws.from_delta(DeltaCE(value=rise), n=100, level=0.95, rng=np.random.default_rng(0))
    endless = {"flops_range": (1e-290, 1e290), "params_range": (1e-290, 1e290)}
    fixed = dataclasses.replace(law, covariance=None, **endless)
    estimates = law_relative(fixed, Original(params=params, tokens=tokens), drawn)
    return [estimate.fraction for estimate in estimates]


SIZES = {"params": st.floats(1e6, 1e12), "tokens": st.floats(1e8, 1e14)}


@given(rise=st.floats(1e-6, 5), **SIZES)
def test_each_fraction_buys_exactly_the_rise(rise, params, tokens):
    assert isinstance(BESIROGLU, ParametricLaw)
    compute, size, data = relative(rise, params, tokens)
    loss = BESIROGLU.loss(params, tokens)
    own = BESIROGLU.optimal_flops(loss - BESIROGLU.E)
    assert BESIROGLU.optimal_loss(own * compute) == pytest.approx(loss + rise, rel=1e-9)
    assert BESIROGLU.loss(params * size, tokens) == pytest.approx(loss + rise, rel=1e-9)
    assert BESIROGLU.loss(params, tokens * data) == pytest.approx(loss + rise, rel=1e-9)


@given(rise=st.floats(0, 3), step=st.floats(1e-4, 1), **SIZES)
def test_a_greater_rise_leaves_less(rise, step, params, tokens):
    assert all(
        b < a for a, b in zip(relative(rise, params, tokens), relative(rise + step, params, tokens), strict=True)
    )


@given(**SIZES)
def test_nothing_spliced_in_leaves_everything(params, tokens):
    assert relative(0.0, params, tokens) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("rise", [0.01, 0.2, 1.0])
def test_closed_form_against_a_numerical_inverse(rise):
    assert isinstance(BESIROGLU, ParametricLaw)
    law, params, tokens = BESIROGLU, 2.8e9, 3e11
    loss = law.loss(params, tokens)

    def compute_for(target):  # minimise over N at each C by bisection of the slope, then invert in C
        def best(log_c):
            flops = math.exp(log_c)

            def slope(log_n):
                n = math.exp(log_n)
                return -law.alpha * law.A * n**-law.alpha + law.beta * law.B * (flops / 6 / n) ** -law.beta

            n = math.exp(brentq(slope, 5, 40, xtol=1e-14))
            return law.loss(n, flops / 6 / n)

        return math.exp(brentq(lambda log_c: best(log_c) - target, 25, 70, xtol=1e-13))

    expected = compute_for(loss + rise) / compute_for(loss)
    assert relative(rise, params, tokens)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "tokens", "rise", "printed"),
    [
        ("pythia-2.8b", None, 0.0558, "0.466"),
        ("pythia-2.8b", None, 0.1626, "0.137"),
        ("pythia-2.8b", None, 0.3355, "0.0292"),
        ("google/gemma-7b", None, 0.0309, "0.469"),
        ("google/gemma-7b", None, 0.0657, "0.222"),
        ("google/gemma-7b", None, 0.1185, "0.0841"),
        ("gpt2", 1e11, 0.144, "0.448"),
        ("meta-llama/Llama-3.1-8B", None, 0.162, "0.0380"),
        ("EleutherAI/pythia-70m-deduped", None, 0.55, "0.0909"),
    ],
)
def test_worked_values(model, tokens, rise, printed):
    result = effective_compute(DeltaCE(value=rise), model=model, tokens=tokens)
    digits = len(printed) - 2
    assert f"{result.estimates[0].fraction:.{digits}f}" == printed


def test_the_paper_prints_a_rise_of_0559_and_with_it_the_last_digit_changes():
    """Pythia-2.8B, gated, layer 4: 1.9698 to 2.0257 is 0.0559; 0.0558 gives 0.466, 0.0559 gives 0.465."""
    result = effective_compute(ce_baseline=1.9698, ce_spliced=2.0257, model="pythia-2.8b")
    assert f"{result.estimates[0].fraction:.3f}" == "0.465"


def test_subtracting_a_borrowed_floor_misleads_by_a_factor_of_eight():
    result = effective_compute(ce_baseline=1.9698, ce_spliced=2.1324, model="pythia-2.8b", law_text="same")
    fractions = {e.definition: e.fraction for e in result.estimates if e.quantity == "effective compute"}
    assert f"{fractions['within the law']:.3f}" == "0.137"
    assert f"{fractions['within the law, at the measured loss']:.3f}" == "0.017"


def test_negative_delta_is_reported_above_one():
    result = effective_compute(ce_baseline=2.5426, ce_spliced=2.5196, model="google/gemma-7b")
    estimate = result.estimates[0]
    assert estimate.fraction > 1
    assert estimate.log10 > 0
    assert estimate.interval.low > 1
    assert "delta CE is negative (-0.023): the spliced model has the lower loss" in estimate.flags


def test_at_or_below_the_floor_is_undefined_with_the_reason():
    estimates = effective_compute(ce_baseline=3.0, ce_spliced=1.5, params=7e7, tokens=3e11).estimates
    assert [estimate.fraction for estimate in estimates] == [None, None, None]
    assert [estimate.log10 for estimate in estimates] == [None, None, None]
    assert "at or below the law's floor E, 1.033 nats/token under the original" in estimates[0].reason
    assert "endless parameters" in estimates[1].reason
    assert "endless tokens" in estimates[2].reason


def test_baseline_below_the_floor_of_a_law_said_to_match_is_refused():
    result = effective_compute(ce_baseline=1.5, ce_spliced=1.6, params=7e7, tokens=3e11, law_text="same")
    refused = result.estimates[-1]
    assert refused.fraction is None
    assert "baseline CE 1.5 is at or below E = 1.817" in refused.reason


def test_below_the_range_says_less_than():
    estimate = effective_compute(ce_baseline=3.0, ce_spliced=5.5, params=7e7, tokens=3e11).estimates[0]
    assert estimate.bound == "< 0.0934"
    assert "the spliced model is worth 1.51e+16 FLOPs, below the range (1.4e+18): extrapolated" in estimate.flags
    assert estimate.fraction == pytest.approx(0.00101, rel=0.01)  # not clipped to the bound


def test_above_the_range_is_flagged():
    flags = effective_compute(ce_baseline=2.5, ce_spliced=2.6, model="google/gemma-7b").estimates[0].flags
    assert any("above its range 1.4e+18 to 1.3e+22: extrapolated" in flag for flag in flags)


@pytest.mark.parametrize("model", ["google/gemma-2-2b", "google/gemma-3-4b-pt", "meta-llama/Llama-3.2-1B"])
def test_distilled_models_are_flagged(model):
    flags = effective_compute(ce_baseline=2.5, ce_spliced=2.6, model=model).estimates[0].flags
    assert any("distilled" in flag and "not bought by C = 6ND alone" in flag for flag in flags)


@pytest.mark.parametrize("model", ["gpt2", "gpt2-xl", "mistralai/Mistral-7B-v0.1"])
def test_undisclosed_tokens_are_asked_for(model):
    estimate = effective_compute(ce_baseline=3.1, ce_spliced=3.2, model=model).estimates[0]
    assert estimate.fraction is None
    assert estimate.reason.startswith("needs training tokens (")
    assert "never published" in estimate.reason
    assert "--tokens 1e10" in estimate.reason
    assert effective_compute(ce_baseline=3.1, ce_spliced=3.2, model=model, tokens=1e11).estimates[0].fraction


def test_a_curve_of_the_same_text_needs_no_tokens():
    result = effective_compute(
        ce_baseline=3.139, ce_spliced=3.283, model="gpt2", law="porian2024_openwebtext2", law_text="same"
    )
    assert result.estimates[0].fraction is None
    assert result.preferred.definition == "within the law, at the measured loss"
    assert result.preferred.fraction == pytest.approx(0.45, abs=0.005)


def test_spread_between_laws_is_apart_from_the_interval_within_one():
    result = effective_compute(ce_baseline=1.9698, ce_spliced=2.1324, model="pythia-2.8b", law="all")
    spread = result.law_spread
    values = {
        e.curve: e.fraction
        for e in result.estimates
        if (e.quantity, e.definition) == ("effective compute", "within the law")
    }
    outside = {"porian2024_openwebtext2", "porian2024_refinedweb"}  # of models a hundredth as large
    assert {law for law, value in values.items() if value is None} == outside
    assert set(spread.laws) == set(values) - outside - {"hoffmann2022_rounded", "kaplan2020"}
    assert spread.low == min(values[law] for law in spread.laws)
    assert spread.high == max(values[law] for law in spread.laws)
    within = result.estimates[0].interval
    assert spread.decades > math.log10(within.high / within.low)
    alone = effective_compute(ce_baseline=1.9698, ce_spliced=2.1324, model="pythia-2.8b")
    assert alone.law_spread == spread  # whichever law was asked for
    assert effective_compute(ce_baseline=2, ce_spliced=2.1, model="gpt2").law_spread is None


def test_the_spread_takes_in_the_law_of_the_text_and_those_asked():
    losses = {"ce_baseline": 2.9, "ce_spliced": 3.0, "params": 1e9, "tokens": 1e11}
    alone, of_text = (effective_compute(**losses, text=text) for text in (None, "c4"))
    assert set(of_text.law_spread.laws) == {*alone.law_spread.laws, "olmo_ladder_c4"}
    own = next(e.fraction for e in of_text.estimates if (e.curve, e.definition) == ("olmo_ladder_c4", "within the law"))
    assert of_text.law_spread.low <= own <= of_text.law_spread.high
    mine = ParametricLaw(name="mine", E=1.7, A=400, B=400, alpha=0.3, beta=0.3)
    assert effective_compute(**losses, law=mine).law_spread.laws == (*alone.law_spread.laws, "mine")


def test_compute_only_laws_say_what_they_cannot():
    estimates = effective_compute(ce_baseline=2, ce_spliced=2.1, model="pythia-2.8b", law="cerebras2023").estimates
    assert estimates[0].fraction is not None
    assert any("taken as compute-optimal" in flag for flag in estimates[0].flags)
    assert any("6ND stands in for algorithmic training FLOPs" in flag for flag in estimates[0].flags)
    others = [e for e in estimates if e.quantity != "effective compute"]
    assert [e.reason for e in others] == ["this law speaks of compute alone, not of parameters and tokens"] * 2


def test_non_embedding_laws_take_the_non_embedding_count():
    law = get_law("olmo_ladder_pile")
    estimate = effective_compute(ce_baseline=2, ce_spliced=2.1, model="pythia-70m", law=law).estimates[0]
    given_total = effective_compute(ce_baseline=2, ce_spliced=2.1, params=70426624, tokens=299892736000, law=law)
    assert estimate.fraction == pytest.approx(relative(0.1, 18915328, 299892736000, law)[0], rel=1e-9)
    assert any("counts non-embedding parameters" in flag for flag in given_total.estimates[0].flags)
    assert not any("counts non-embedding" in flag for flag in estimate.flags)


def test_presets_carry_their_sources():
    for preset in presets().values():
        assert preset.params_source
        assert preset.tokens_source
        assert (preset.tokens is None) == (preset.tokens_status == "unknown")
    assert find_preset("EleutherAI/Pythia-2.8b-deduped") == presets()["pythia-2.8b"]
    assert find_preset("meta-llama/Llama-3.1-8B-Instruct") is None


def test_frame_keeps_none_and_the_provenance():
    result = effective_compute(ce_baseline=3, ce_spliced=1.5, params=7e7, tokens=3e11)
    row = result.to_frame().iloc[0]
    assert row["fraction"] is None
    assert row["log10"] is None
    assert "E=1.8172" in row["constants"]
    assert "arXiv:2404.10102" in row["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ce_baseline": 3.0}, "needs two losses"),
        ({"delta": DeltaCE(value=0.1), "ce_spliced": 3.0}, "not both"),
        ({"ce_baseline": -1, "ce_spliced": 3.0}, "The baseline CE is -1; it must be a number of nats/token"),
        ({"ce_baseline": 3, "ce_spliced": math.nan}, "The spliced CE is nan"),
        (
            {"ce_baseline": 3, "ce_spliced": 3.1, "params": 0},
            "number of parameters is 0; it must be positive",
        ),
        ({"ce_baseline": 3, "ce_spliced": 3.1, "model": "pithia-70m"}, "Did you mean 'pythia-70m'"),
        ({"ce_baseline": 3, "ce_spliced": 3.1, "level": 95}, "level of an interval is 95"),
        ({"ce_baseline": 3, "ce_spliced": 3.1, "draws": 10}, "10 draws are too few"),
        ({"ce_baseline": 3, "ce_spliced": 3.1, "law_text": "maybe"}, "must be 'same' or 'other'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        effective_compute(**arguments)


# -- outside the law --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rise", [1.2, 3.0, 8.0])
@pytest.mark.parametrize("law", ["besiroglu2024", "olmo_ladder_pile", "cerebras2023", "porian2024_openwebtext2"])
def test_beyond_two_decades_there_is_a_bound_and_no_point(law, rise):
    """Each estimate is within a factor of 100 of the law's range, or none."""
    result = effective_compute(ce_baseline=2.0, ce_spliced=2.0 + rise, model="pythia-2.8b", law=law)
    low, high = get_law(law).flops_range
    for estimate in result.estimates:
        if estimate.fraction is None:
            assert estimate.reason
            continue
        if estimate.unit == "FLOPs":
            assert low / 100 <= estimate.equivalent <= 100 * high
    if rise == 8.0:
        quoted = result.estimates[0]
        assert quoted.fraction is None
        assert quoted.interval is None
        assert quoted.reason.startswith("outside the law: the ")
        assert quoted.bound.startswith("< ")
        exact = effective_compute(
            ce_baseline=2.0,
            ce_spliced=10.0,
            model="pythia-2.8b",
            law=dataclasses.replace(get_law(law), flops_range=(low * 1e-30, high)),
        ).estimates[0]
        assert exact.fraction is None or exact.fraction < float(quoted.bound[2:])


def test_a_tiny_original_is_outside_the_law_and_all_that_is_known_is_the_sign():
    for spliced, bound in ((1.2, "< 1"), (1.1, "> 1")):
        estimates = effective_compute(ce_baseline=1.15, ce_spliced=spliced, params=1e6, tokens=6.5e6).estimates
        assert [estimate.fraction for estimate in estimates] == [None] * 3
        assert estimates[0].bound == bound
        assert estimates[0].reason.startswith("outside the law: the original would be ")


def test_without_a_known_range_nothing_is_told_two_decades_from_the_original():
    near, far = (
        effective_compute(ce_baseline=2.0, ce_spliced=2.0 + rise, model="pythia-2.8b", law="hoffmann2022").estimates[0]
        for rise in (0.1, 2.0)
    )
    assert 0 < near.fraction < 1
    assert (far.fraction, far.bound) == (None, "< 0.01")
    assert "below the original's own" in far.reason


def test_a_loss_above_that_of_knowing_nothing_is_not_converted():
    worst = math.log(50304)
    for spliced, defined in ((worst + 0.01, False), (worst - 0.01, True)):
        law = dataclasses.replace(BESIROGLU, flops_range=(1e5, 1.3e22), params_range=(1.0, 16e9))
        result = effective_compute(ce_baseline=2.5, ce_spliced=spliced, model="pythia-70m", law=law)
        assert (result.estimates[0].fraction is not None) == defined
    estimate = effective_compute(ce_baseline=2.5, ce_spliced=11, model="pythia-70m").estimates[0]
    assert estimate.reason == (
        "the spliced CE 11 is above ln(50304) = 10.83, the loss of a model that knows nothing: no amount of training "
        "buys so great a loss"
    )
    small = effective_compute(ce_baseline=2.5, ce_spliced=5.0, params=7e7, tokens=3e11, vocabulary=100).preferred
    assert small.fraction is None


def test_flops_give_the_parameters_or_the_tokens_that_are_not_known():
    whole = effective_compute(ce_baseline=3, ce_spliced=3.1, params=1e9, tokens=2e10)
    for numbers in ({"params": 1e9}, {"tokens": 2e10}):
        result = effective_compute(ce_baseline=3, ce_spliced=3.1, flops=1.2e20, **numbers)
        assert [e.fraction for e in result.estimates] == pytest.approx([e.fraction for e in whole.estimates])
        assert "the FLOPs given, by C = 6ND" in (result.original.tokens_source, result.original.params_source)


def test_flops_alone_are_those_of_a_compute_optimal_model():
    law = BESIROGLU
    optimal = effective_compute(
        ce_baseline=3, ce_spliced=3.1, params=law.optimal_params(1e20), tokens=law.optimal_tokens(1e20)
    ).estimates[0]
    estimates = effective_compute(ce_baseline=3, ce_spliced=3.1, flops=1e20).estimates
    assert estimates[0].fraction == pytest.approx(optimal.fraction)
    assert estimates[0].interval.low == pytest.approx(optimal.interval.low, rel=0.02)
    assert any("taken as compute-optimal: its FLOPs are all that is known" in flag for flag in estimates[0].flags)
    assert [estimate.fraction for estimate in estimates[1:]] == [None] * 3


def test_flops_that_are_not_6nd_are_said_not_to_enter():
    estimate = effective_compute(ce_baseline=3, ce_spliced=3.1, params=1e9, tokens=2e10, flops=2.4e20).estimates[0]
    assert any("the FLOPs given are 2 times 6ND and do not enter" in flag for flag in estimate.flags)


@pytest.mark.parametrize(
    ("law", "why"),
    [
        ("hoffmann2022", "no covariance of this law is published"),
        ("cerebras2023", "no covariance of this law is published"),
        ("porian2024_refinedweb", "this law was fitted here to published points, without a covariance"),
        (
            ParametricLaw(name="own", E=1.7, A=400, alpha=0.34, B=410, beta=0.28),
            "this law was given without a covariance",
        ),
    ],
)
def test_why_a_law_has_no_covariance(law, why):
    flags = effective_compute(ce_baseline=3, ce_spliced=3.1, params=1e9, tokens=2e10, law=law).estimates[0].flags
    assert f"{why}: its parameters are held fixed" in flags


def test_a_standard_error_of_few_documents_spreads_as_students_t():
    """With their number the interval is that of the documents themselves; of normal ones, Student's."""
    rng = np.random.default_rng(0)
    few = delta_from_losses(ce_baseline=3, ce_spliced=3.2, standard_error=0.02, documents=5)
    half = np.quantile(few.draw(200_000, rng=rng) - 0.2, 0.975)
    assert half == pytest.approx(0.02 * math.sqrt(5 / 4) * stats.t.ppf(0.975, 4), rel=0.03)
    assert few.caveats == ("fewer than 30 documents: the interval covers less than it says",)
