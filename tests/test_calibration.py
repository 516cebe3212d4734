"""Known pairs of models: the shipped table, the calibrated fraction and its refusals, recomputed with plain numpy."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from held_out_pairs import by_law, held_out, missed
from known_pairs import compute_pairs, parameter_pairs
from typer.testing import CliRunner

from sae_lm_eval.cli.effective_compute import effective_compute_command as command
from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling import effective_compute, get_original
from sae_lm_eval.scaling.data_files import data_path
from sae_lm_eval.scaling.inverse import loss_rises
from sae_lm_eval.scaling.laws import get_law

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
GAMMA = ALPHA * BETA / (ALPHA + BETA)


def within(rise, params, tokens):
    return (1 + rise / (A * params**-ALPHA + B * tokens**-BETA)) ** (-1 / GAMMA)


def biases(text, ratio):
    """log(log f / log truth) of the six pairs of a text at a number of tokens per parameter, from the file alone."""
    runs = pd.read_csv(data_path("olmo_ladder.csv"))
    runs = runs[(runs.text == text) & runs.model.str.endswith(f"-{ratio // 20}xC")].sort_values("params")
    rows = runs[["params", "tokens", "loss"]].to_numpy()
    logs = []
    for i, (n, d, loss) in enumerate(rows):
        for large_n, large_d, large_loss in rows[i + 1 :]:
            f = within(loss - large_loss, large_n, large_d)
            logs.append(np.log(np.log(f) / np.log(n * d / (large_n * large_d))))
    return np.array(logs)


def test_there_are_as_many_pairs_as_stated():
    assert (len(compute_pairs()), len(parameter_pairs())) == (264, 56)


@pytest.mark.parametrize(("text", "ratio"), [("pile", 20), ("wikitext", 100), ("ice", 200)])
def test_the_table_has_the_mean_bias_of_its_pairs(text, ratio):
    table = pd.read_csv(data_path("calibration.csv"))
    row = table.query("law == 'besiroglu2024' and text == @text and tokens_per_parameter == @ratio").iloc[0]
    own = biases(text, ratio)
    assert len(own) == row.pairs == 6
    assert row.log_bias == pytest.approx(own.mean(), rel=1e-5)


def test_a_calibrated_fraction_by_hand():
    rows = pd.read_csv(data_path("calibration.csv")).query("law == 'besiroglu2024' and text == 'wikitext'")
    row = rows.query("tokens_per_parameter == 100").iloc[0]
    result = effective_compute(ce_baseline=2.6, ce_spliced=2.7, params=1e9, tokens=1e11, text="wikitext")
    assert result.calibrated is not None
    f = within(0.1, 1e9, 1e11)
    assert result.estimates[-1].curve == result.calibrated.curve or result.within_the_law is not None
    estimate = next(e for e in result.estimates if (e.curve, e.definition) == ("besiroglu2024", "law, calibrated"))
    assert estimate.fraction == pytest.approx(f ** np.exp(-row.log_bias), rel=1e-4)
    assert estimate.interval.low == pytest.approx(f ** np.exp(-row.log_bias + row.half_width), rel=1e-4)
    assert estimate.interval.high == pytest.approx(f ** np.exp(-row.log_bias - row.half_width), rel=1e-4)
    assert result.preferred.curve == "olmo_ladder_wikitext"  # of two calibrated laws the one of the text


def test_the_width_is_the_quantile_of_what_is_missed_without_a_size():
    pairs, law = compute_pairs(), by_law(get_law("besiroglu2024"))
    errors = [abs(error.error) for error in missed(pairs, law, known_text=False)]
    row = pd.read_csv(data_path("calibration.csv")).query("law == 'besiroglu2024' and text == 'any'").iloc[0]
    assert row.half_width == pytest.approx(np.quantile(errors, 0.98), rel=1e-5)
    assert 0.95 <= held_out(pairs, law, 0.98, known_text=False).coverage <= 0.98


@pytest.mark.parametrize(
    ("original", "says"),
    [
        ({"model": "pythia-2.8b"}, "known pairs have 2.67e+08 to 1.48e+09 parameters, and pythia-2.8b has 2.78e+09"),
        ({"params": 1e9, "tokens": 1e12}, "known pairs have 20 to 200 tokens per parameter"),
    ],
)
def test_outside_of_what_was_measured_nothing_is_calibrated(original, says):
    result = effective_compute(ce_baseline=2.4, ce_spliced=2.5, **original)
    assert result.calibrated.fraction is None
    assert says in result.calibrated.reason
    assert result.calibrated.reason.startswith("not calibrated: ")
    assert result.law_spread is not None


def test_the_flagship_on_its_own_family_by_hand():
    """Pythia-2.8B, gated SAE at layer 16: between the members, monotone in the loss."""
    from scipy.interpolate import PchipInterpolator

    families = pd.read_csv(data_path("families.csv"))
    result = effective_compute(ce_baseline=1.9698, ce_spliced=2.1324, model="pythia-2.8b")
    fractions = {e.curve: e.fraction for e in result.estimates if e.definition == "published family"}
    for name, printed in (("pythia_pile_validation", "0.383"), ("pythia_pile_test", "0.276")):
        rows = families[families.family == name].sort_values("loss")
        own = rows.set_index("model").loss["pythia-2.8b"]
        log_n = PchipInterpolator(rows.loss, np.log(rows.params))
        assert fractions[name] == pytest.approx(np.exp(log_n(own + 0.1626) - log_n(own)), rel=1e-6)
        assert f"{fractions[name]:.3f}" == printed
    assert result.preferred.curve == "pythia_pile_validation"


def test_the_fraction_is_one_of_the_own_6nd_at_the_same_training():
    estimate = effective_compute(ce_baseline=2.4, ce_spliced=2.6, params=1e9, tokens=1e11).within_the_law
    params, tokens = estimate.same_training
    assert params * tokens == pytest.approx(estimate.fraction * 1e9 * 1e11)
    rise = A * params**-ALPHA + B * tokens**-BETA - A * 1e9**-ALPHA - B * 1e11**-BETA
    assert rise == pytest.approx(0.2)


def test_the_rise_that_leaves_a_tenth_by_hand():
    frame = loss_rises(0.1, get_original(params=1e9, tokens=1e11), [get_law("besiroglu2024")])
    reducible = A * 1e9**-ALPHA + B * 1e11**-BETA
    expected = [
        reducible * (0.1**-GAMMA - 1),
        A * 1e9**-ALPHA * (0.1**-ALPHA - 1),
        B * 1e11**-BETA * (0.1**-BETA - 1),
    ]
    assert list(frame["delta_ce"]) == pytest.approx(expected)
    app = typer.Typer()
    app.command()(command)
    printed = CliRunner().invoke(app, ["--fraction", "0.1", "--params", "1e9", "--tokens", "1e11", "--format", "json"])
    assert json.loads(printed.stdout)[0]["delta_ce"] == pytest.approx(expected[0])


def test_losses_of_other_tokens_are_converted_or_the_lack_is_said():
    law = {"E": E, "A": A, "B": B, "alpha": ALPHA, "beta": BETA, "name": "own", "bytes_per_token": 4.0}
    from sae_lm_eval.scaling.laws import law_from_dict

    own = law_from_dict(law, where="own")
    arguments = {"ce_baseline": 2.4, "ce_spliced": 2.5, "params": 1e9, "tokens": 1e11, "law": own}
    estimate = effective_compute(**arguments, bytes_per_token=5.0).within_the_law
    assert estimate.fraction == pytest.approx(within(0.1 * 4 / 5, 1e9, 1e11))
    assert any("times 0.8" in flag for flag in estimate.flags)
    assert any("is not converted" in flag for flag in effective_compute(**arguments).within_the_law.flags)


def test_a_baseline_that_no_such_model_has_is_flagged():
    for baseline, flagged in ((2.4, False), (7.0, True)):
        result = effective_compute(ce_baseline=baseline, ce_spliced=baseline + 0.1, params=1e9, tokens=1e11)
        assert any("is not what a model of" in flag for flag in result.within_the_law.flags) == flagged


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"text": "wikitxt"}, "There is no text with known pairs 'wikitxt'. Did you mean 'wikitext'"),
        ({"bytes_per_token": 0}, "number of bytes per token is 0; it must be positive"),
    ],
)
def test_bad_input_is_one_sentence(arguments, says):
    with pytest.raises(UserError, match=says):
        effective_compute(ce_baseline=2.4, ce_spliced=2.5, params=1e9, tokens=1e11, **arguments)
    with pytest.raises(UserError, match="The fraction is -1; it must be a positive number"):
        loss_rises(-1, get_original(params=1e9, tokens=1e11), [get_law("besiroglu2024")])


def test_the_table_and_the_page_are_those_of_the_script():
    script = Path(__file__).parents[1] / "scripts" / "calibration.py"
    process = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
