"""Fitted laws, measured families and checkpoints, and the coverage of their intervals."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling import (
    DeltaCE,
    Family,
    Original,
    ParametricLaw,
    builtin_families,
    delta_from_losses,
    effective_compute,
    fit_compute_law,
    fit_parametric_law,
    get_law,
    read_family,
)
from sae_lm_eval.scaling.curve_estimates import checkpoint_estimate, family_estimates
from sae_lm_eval.scaling.data_files import data_path
from sae_lm_eval.scaling.estimate import Draws
from sae_lm_eval.scaling.family import monotone_curve
from sae_lm_eval.scaling.law_estimates import law_relative
from sae_lm_eval.scaling.laws import ComputeLaw

TRUTH = ComputeLaw(name="true", E=1.6, K=0.6 * 4.5e20**0.15, gamma=0.15)
COMPUTE = np.geomspace(1e19, 2e22, 9)


def family(loss, compute=COMPUTE, kind="family"):
    models = tuple(f"m{i}" for i in range(len(loss)))
    return Family(name="made", kind=kind, models=models, compute=compute, loss=np.asarray(loss))


def by_definition(result):
    return {estimate.definition: estimate for estimate in result.estimates}


@pytest.mark.parametrize("name", ["besiroglu2024", "hoffmann2022", "muennighoff2023"])
def test_a_fit_to_exact_losses_returns_the_law(name):
    truth = get_law(name)
    assert isinstance(truth, ParametricLaw)
    params, tokens = (a.ravel() for a in np.meshgrid(np.geomspace(5e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
    fitted = fit_parametric_law(params, tokens, truth.loss(params, tokens))
    assert fitted.constants == pytest.approx(truth.constants, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(E=st.floats(0.5, 2.5), gamma=st.floats(0.06, 0.4), height=st.floats(0.2, 1.5))
def test_a_fit_to_an_exact_family_returns_the_curve(E, gamma, height):
    truth = ComputeLaw(name="t", E=E, K=height * 4e20**gamma, gamma=gamma)
    fitted = fit_compute_law(COMPUTE, truth.optimal_loss(COMPUTE))
    assert pytest.approx(E, rel=1e-3) == fitted.E
    assert fitted.gamma == pytest.approx(gamma, rel=1e-3)


def test_the_olmo_law_is_the_fit_to_its_runs_and_predicts_the_held_out_models():
    runs = pd.read_csv(data_path("olmo_ladder.csv")).query("text == 'pile'")
    used = runs[runs["role"] == "fit"]
    law = get_law("olmo_ladder_pile")
    assert isinstance(law, ParametricLaw)
    fitted = fit_parametric_law(used["params_non_embedding"], used["tokens"], used["loss"])
    assert fitted.constants == pytest.approx(law.constants, rel=1e-4)
    assert fitted.covariance.matrix == pytest.approx(law.covariance.matrix, rel=1e-2)
    assert law.gamma == pytest.approx(0.114, abs=5e-4)
    held = runs[runs["role"] == "held out"]
    assert list(held["model"]) == ["7B-4T", "13B-5T"]
    assert np.abs(held["loss"] - law.loss(held["params_non_embedding"], held["tokens"])).max() < 0.0145


def test_fits_refuse_what_cannot_be_fitted():
    with pytest.raises(UserError, match="3 points; a law with 3 parameters needs 4"):
        fit_compute_law([1e18, 1e19, 1e20], [4, 3, 2.5])
    with pytest.raises(UserError, match="do not fall with size or compute"):
        fit_compute_law([1e18, 1e19, 1e20, 1e21], [2, 2.5, 3, 4])
    with pytest.raises(UserError, match="must take three values or more"):
        fit_parametric_law([1e8] * 6, np.geomspace(1e9, 1e11, 6), [4, 3.8, 3.6, 3.5, 3.45, 3.4])
    with pytest.raises(UserError, match="loss must be a list of positive numbers"):
        fit_compute_law([1e18, 1e19, 1e20, 1e21], [4, 3, 0, 2])


@given(noise=st.lists(st.floats(-0.3, 0.3), min_size=9, max_size=9))
def test_the_monotone_curve_is_monotone_and_inverts_its_knots(noise):
    loss = TRUTH.optimal_loss(COMPUTE) * np.exp(noise)
    try:
        curve = monotone_curve(COMPUTE, loss)
    except UserError as error:
        assert "do not fall with compute" in str(error)  # noqa: PT017
        return
    assert (np.diff(curve.loss) < 0).all()
    assert (np.diff(curve.log_compute) > 0).all()
    assert curve.log_compute_at(curve.loss) == pytest.approx(curve.log_compute)
    grid = np.linspace(curve.best, curve.worst, 50)
    assert (np.diff(curve.log_compute_at(grid)) <= 1e-12).all()


def test_definitions_agree_on_an_exact_family():
    own, share = COMPUTE[6], 0.1
    losses = {
        "ce_baseline": float(TRUTH.optimal_loss(own)),
        "ce_spliced": float(TRUTH.optimal_loss(own * share)),
    }
    estimates = by_definition(effective_compute(**losses, family=family(TRUTH.optimal_loss(COMPUTE))))
    assert estimates["family fit"].fraction == pytest.approx(share, rel=1e-5)
    assert estimates["family interpolation"].fraction == pytest.approx(share, rel=0.01)
    assert estimates["family fit"].equivalent == pytest.approx(own * share, rel=1e-4)
    assert estimates["within the law"].reason.startswith("needs parameters and training tokens")


def test_members_of_a_family_are_worth_their_own_compute():
    table = read_family("cerebras_pile_test")
    result = effective_compute(ce_baseline=1.572, ce_spliced=1.834, family=table)
    assert by_definition(result)["family interpolation"].fraction == pytest.approx(1.1e21 / 2.3e22)
    assert result.preferred.definition == "family interpolation"


def test_outside_the_measured_range_only_a_bound_is_given():
    result = effective_compute(ce_baseline=1.72, ce_spliced=2.9, model="pythia-2.8b", family="pythia_pile_test")
    estimate = by_definition(result)["family interpolation"]
    assert estimate.fraction is None
    assert estimate.bound == "< 0.0262"
    assert "spliced loss 2.9 is above the worst measured loss, 2.504" in estimate.reason
    assert result.preferred.definition == "family fit"
    better = effective_compute(ce_baseline=1.626, ce_spliced=1.5, family="pythia_pile_test")
    assert by_definition(better)["family interpolation"].bound == "> 1.71"


def test_an_original_outside_the_family_has_no_point_on_it():
    result = effective_compute(ce_baseline=1.2, ce_spliced=1.9, family="pythia_pile_test")
    reason = by_definition(result)["family interpolation"].reason
    assert "baseline CE 1.2 is below the best loss of the family, 1.582" in reason
    assert "at or below E = 1.3" in by_definition(result)["family fit"].reason


def test_a_family_of_another_text_is_refused():
    result = effective_compute(ce_baseline=1.9698, ce_spliced=2.1324, model="pythia-2.8b", family="pythia_pile_test")
    for definition in ("family fit", "family interpolation"):
        assert "but the family has pythia-2.8b at 1.72: not the same text" in by_definition(result)[definition].reason
    assert result.preferred.definition == "published family"


def test_a_family_trained_on_one_token_count_is_flagged():
    flags = read_family("pythia_pile_validation").flags
    assert "every member saw the same number of tokens" in flags[0]
    assert read_family("cerebras_pile_test").flags == ()


def test_checkpoints_tell_the_share_of_the_training(tmp_path):
    path = tmp_path / "run.csv"
    steps = [0, 1000, 2000, 4000, 8000, 16000, 32000, 64000]
    loss = [10.8, 5.0, 4.5, 4.0, 4.05, 3.4, 3.2, 3.0]
    pd.DataFrame({"step": steps, "loss": loss}).to_csv(path, index=False)
    estimates = by_definition(effective_compute(ce_baseline=2.9, ce_spliced=3.05, checkpoints=path))
    estimate = estimates["checkpoints isotonic"]
    assert 0.5 < estimate.fraction < 1
    assert estimate.unit == "steps"
    assert any("zero steps have no logarithm" in flag for flag in estimate.flags)
    assert any("their learning rate was not annealed" in flag for flag in estimate.flags)
    same = effective_compute(ce_baseline=2.9, ce_spliced=2.9, checkpoints=path)
    assert by_definition(same)["checkpoints isotonic"].fraction == 1
    better = by_definition(effective_compute(ce_baseline=2.9, ce_spliced=2.8, checkpoints=path))
    assert better["checkpoints isotonic"].fraction is None
    assert better["checkpoints isotonic"].bound == "> 1"


def test_documents_widen_the_interval_of_every_measured_curve():
    loss = TRUTH.optimal_loss(COMPUTE) * np.exp(0.001 * np.random.default_rng(0).standard_normal(9))
    for kind in ("family", "checkpoints"):
        curve = {"checkpoints" if kind == "checkpoints" else "family": family(loss, kind=kind)}
        widths = []
        for error in (None, 0.05):
            delta = delta_from_losses(ce_baseline=float(loss[-2]), ce_spliced=float(loss[-4]), standard_error=error)
            estimate = effective_compute(delta, **curve).preferred
            widths.append(math.log(estimate.interval.high / estimate.interval.low))
        assert widths[1] > 1.2 * widths[0]


def test_few_points_leave_the_scatter_out_and_say_so():
    result = effective_compute(ce_baseline=3.0, ce_spliced=3.2, family=family([4.0, 3.3, 2.9], COMPUTE[:3]))
    estimates = by_definition(result)
    assert estimates["family fit"].reason == "a fit of E + K C^-gamma needs four models or more"
    assert estimates["family interpolation"].interval is None
    assert any("too few points to tell their scatter" in flag for flag in estimates["family interpolation"].flags)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,loss\na,3\nb,2\n", "a column flops, or params and tokens, beside loss"),
        ("model,flops\na,3\nb,2\n", "lacks the column loss"),
        ("model,flops,loss\na,1e18,3,2\nb,1e19,2,2\n", "has a row with more cells than there are columns"),
        ("model,flops,loss\na,1e18,3\nb,1e19,1e21\nc,1e20,2\nd,1e21,1\n", "Row 2 of .*: 'loss' is 1e"),
        ("model,flops,loss,loss\na,1e18,3,2\nb,1e19,2,1\n", "has the column 'loss' twice"),
        ("model,flops,loss\na,1e18,True\nb,1e19,True\n", "'loss' is True; it must be a number"),
        ("model,flops,loss\na,1e18,3\n", "needs two rows or more that differ in FLOPs"),
        ("model,flops,loss\na,1e18,3\nb,1e19,\n", "b has no usable loss or FLOPs"),
        ("model,flops,loss\na,1e18,x\nb,1e19,2\n", "Row 1 of .*: 'loss' is x; it must be a valid number"),
        (
            "flops,loss,text\n1e18,3,Pile\n1e19,2,C4\n",
            r"losses on different texts \(Pile; C4\) are not one curve",
        ),
    ],
)
def test_wrong_family_files_are_named(tmp_path, text, message):
    path = tmp_path / "family.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_family(path)


def test_commas_at_the_ends_of_all_rows_move_no_cell(tmp_path):
    path = tmp_path / "family.csv"
    path.write_text("flops,loss,params\n1e18,3,5,\n1e19,2,6,\n")
    assert list(read_family(path).compute) == [1e18, 1e19]


def test_unknown_families_are_named(tmp_path):
    assert "pythia_pile_test" in builtin_families()
    with pytest.raises(UserError, match="Did you mean 'pythia_pile_test'"):
        read_family("pythia_pile")
    with pytest.raises(UserError, match="does not exist"):
        read_family(tmp_path / "none.csv")


def covered(interval, truth):
    return (interval.low or 0) <= truth <= (math.inf if interval.high is None else interval.high)


def test_intervals_of_fitted_laws_hold_the_truth():
    """200 laws on 16 runs and 200 families of seven; benchmarks/ has the long version."""
    rng = np.random.default_rng(7)
    truth = get_law("besiroglu2024")
    assert isinstance(truth, ParametricLaw)
    sizes = np.repeat([190e6, 370e6, 760e6, 1.3e9], 4)
    tokens = 20 * sizes * np.tile([1.0, 2, 5, 10], 4)
    original, delta = Original(params=1e9, tokens=2e10), DeltaCE(value=0.3)
    reducible = truth.loss(1e9, 2e10) - truth.E
    share = (1 + 0.3 / reducible) ** (-1 / truth.gamma)
    compute = np.geomspace(1e19, 2e22, 7)
    law_hits, family_hits, between_hits = [], [], []
    for _ in range(200):
        law = fit_parametric_law(sizes, tokens, truth.loss(sizes, tokens) * np.exp(0.005 * rng.standard_normal(16)))
        fixed = Draws.from_delta(delta, n=800, level=0.95, rng=rng)
        law_hits.append(covered(law_relative(law, original, fixed)[0].interval, share))
        loss = TRUTH.optimal_loss(compute) * np.exp(0.005 * rng.standard_normal(7))
        base = float(loss[-1])
        own = TRUTH.optimal_flops(base - TRUTH.E)
        rise = DeltaCE(value=float(TRUTH.optimal_loss(0.2 * own)) - base, baseline=base)
        drawn = Draws.from_delta(rise, n=800, level=0.95, rng=rng)
        fitted, between = family_estimates(family(loss, compute), Original(), drawn)
        family_hits.append(covered(fitted.interval, 0.2))
        between_hits.append(covered(between.interval, 0.2))
    assert 0.90 <= np.mean(law_hits) <= 0.99
    assert 0.90 <= np.mean(family_hits) <= 0.99
    assert np.mean(between_hits) >= 0.90


def test_interval_of_checkpoints_holds_the_truth():
    rng = np.random.default_rng(3)
    tokens = np.geomspace(1e9, 3e11, 40)
    true_loss = 1.9 + 40 * tokens**-0.18
    rise = DeltaCE(value=float(1.9 + 40 * (0.2 * 3e11) ** -0.18 - true_loss[-1]))
    hits = []
    for _ in range(40):
        run = family(true_loss * np.exp(0.003 * rng.standard_normal(40)), tokens, "checkpoints")
        drawn = Draws.from_delta(rise, n=150, level=0.95, rng=rng)
        hits.append(covered(checkpoint_estimate(run, drawn).interval, 0.2))
    assert np.mean(hits) >= 0.85


def bent(tokens):
    """The course of a training whose loss falls steeply at its start, nats/token."""
    return 1.9 + 40 * tokens**-0.18 + 8 * np.exp(-tokens / 1e9)


UNEQUAL = 3e11 * (np.arange(1, 13) / 12) ** 3  # as far apart as the embedded world's checkpoints


def test_the_steep_start_of_a_training_is_no_scatter():
    """Without noise the pseudo-residual of the first checkpoints is curvature; half of them tell the scatter."""
    noisy = family(bent(UNEQUAL) * np.exp(0.01 * np.random.default_rng(1).standard_normal(12)), UNEQUAL, "checkpoints")
    exact = family(bent(UNEQUAL), UNEQUAL, "checkpoints")
    assert exact.scatter[0] < 0.1 * noisy.scatter[0]
    assert noisy.scatter[0] == pytest.approx(0.01, rel=0.6)


def test_the_scatter_of_checkpoints_is_that_of_normal_noise():
    x = np.geomspace(1e9, 1e12, 4000)
    loss = np.exp(2 - 0.1 * np.log(x) + 0.02 * np.random.default_rng(0).standard_normal(4000))
    assert family(loss, x, "checkpoints").scatter[0] == pytest.approx(0.02, rel=0.05)


def test_interval_of_unequally_spaced_checkpoints_holds_the_truth_and_is_not_the_whole_range():
    rng = np.random.default_rng(3)
    share = 0.4
    rise = DeltaCE(value=float(bent(share * UNEQUAL[-1]) - bent(UNEQUAL[-1])))
    hits, highs = [], []
    for _ in range(60):
        run = family(bent(UNEQUAL) * np.exp(0.003 * rng.standard_normal(12)), UNEQUAL, "checkpoints")
        interval = checkpoint_estimate(run, Draws.from_delta(rise, n=150, level=0.95, rng=rng)).interval
        hits.append(covered(interval, share))
        highs.append(interval.high)
    assert np.mean(hits) >= 0.88
    assert np.median(highs) < 0.8


def test_the_original_stays_the_denominator_where_its_loss_is_pooled():
    """The last two of five checkpoints in the wrong order: the original is the last, and not between the two."""
    loss, tokens = np.array([4.0, 3.5, 3.2, 2.99, 3.0]), np.array([1e9, 2e9, 4e9, 8e9, 16e9])
    curve = monotone_curve(tokens, loss, end="own")
    assert curve.log_compute[-1] == pytest.approx(math.log(16e9))
    estimate = checkpoint_estimate(
        family(loss, tokens, "checkpoints"),
        Draws.from_delta(DeltaCE(value=3.2 - 2.995), n=100, level=0.95, rng=np.random.default_rng(0)),
    )
    assert estimate.fraction == pytest.approx(4 / 16)


def test_the_worlds_own_checkpoints_bound_its_sparsest_dictionary():
    from sae_lm_eval.scaling.conversion import world_checkpoints

    estimate = effective_compute(ce_baseline=1.1355, ce_spliced=1.1355 + 0.0842, checkpoints=world_checkpoints())
    low, high = (getattr(estimate.preferred.interval, side) for side in ("low", "high"))
    assert 0.38 < low < 0.42
    assert 0.53 < high < 0.62
