"""Laws first: the closed forms against numerical optimisation, inverses, monotonicity; then the constants."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

from sae_lm_eval import scaling
from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling import ComputeLaw, ParametricLaw, get_law, laws
from sae_lm_eval.scaling.laws import law_from_dict

PARAMETRIC = [law for law in laws().values() if isinstance(law, ParametricLaw)]
FRONTIERS = list(laws().values())


def name(law):
    return law.name


@pytest.mark.parametrize("law", PARAMETRIC, ids=name)
@pytest.mark.parametrize("flops", [1e18, 5.76e23])
def test_frontier_is_the_numerical_minimum(law, flops):
    def loss(log_n):
        params = np.exp(log_n)
        return law.loss(params, flops / (6 * params))

    def slope(log_n):  # dL/dlog N at fixed C
        params = np.exp(log_n)
        tokens = flops / (6 * params)
        return -law.alpha * law.A * params**-law.alpha + law.beta * law.B * tokens**-law.beta

    optimum = minimize_scalar(loss, bounds=(np.log(1e5), np.log(1e14)), method="bounded", options={"xatol": 1e-10})
    log_n = brentq(slope, np.log(1e5), np.log(1e14), xtol=1e-13)
    assert law.optimal_loss(flops) == pytest.approx(optimum.fun, rel=1e-9)
    assert law.optimal_params(flops) == pytest.approx(np.exp(log_n), rel=1e-9)
    assert 6 * law.optimal_params(flops) * law.optimal_tokens(flops) == pytest.approx(flops, rel=1e-12)


@given(
    E=st.floats(0, 3),
    A=st.floats(1, 1e4),
    alpha=st.floats(0.05, 1),
    B=st.floats(1, 1e5),
    beta=st.floats(0.05, 1),
    log_c=st.floats(35, 60),
)
def test_inverse_of_the_frontier_is_the_identity(E, A, alpha, B, beta, log_c):
    law = ParametricLaw(name="any", E=E, A=A, alpha=alpha, B=B, beta=beta)
    reducible = law.K * np.exp(log_c) ** -law.gamma
    assert np.log(law.optimal_flops(reducible)) == pytest.approx(log_c, rel=1e-9)
    assert law.optimal_loss(np.exp(log_c)) - E == pytest.approx(reducible, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("law", FRONTIERS, ids=name)
@given(log_c=st.floats(30, 60), step=st.floats(1e-3, 5))
def test_more_compute_is_never_worse(law, log_c, step):
    assert law.optimal_loss(np.exp(log_c + step)) < law.optimal_loss(np.exp(log_c))


def test_rounded_constants_move_the_optimum():
    assert get_law("hoffmann2022").optimal_params(5.76e23) == pytest.approx(40.4e9, abs=0.05e9)
    assert get_law("hoffmann2022_rounded").optimal_params(5.76e23) == pytest.approx(32.2e9, abs=0.05e9)
    assert get_law("hoffmann2022_rounded").superseded


@pytest.mark.parametrize(
    ("law", "constants"),
    [
        ("hoffmann2022", {"E": 1.69337, "A": 406.401, "B": 410.723, "alpha": 0.33917, "beta": 0.28491}),
        ("besiroglu2024", {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}),
        (
            "muennighoff2023",
            {"E": np.exp(0.62548), "A": np.exp(6.2554), "B": np.exp(7.3050), "alpha": 0.35266},
        ),
        ("cerebras2023", {"E": 0.5066, "K": 5.984e22**0.0737, "gamma": 0.0737}),
        ("kaplan2020", {"E": 0.0, "K": (3.1e8 * 8.64e19) ** 0.05, "gamma": 0.05}),
        ("porian2024_refinedweb", {"E": 1.632, "gamma": 0.0901}),
        ("porian2024_openwebtext2", {"E": 1.468, "gamma": 0.1036}),
    ],
)
def test_constants_are_the_published_ones(law, constants):
    for key, value in constants.items():
        assert get_law(law).constants[key] == pytest.approx(value, rel=5e-4), key


def test_every_law_names_its_source_text_and_units():
    for law in laws().values():
        assert len(law.source) > 20, law.name
        assert law.text != "unstated", law.name
        assert law.units == "nats/token"


def test_besiroglu_covariance_gives_the_published_errors():
    law = get_law("besiroglu2024")
    assert law.covariance is not None
    deviations = np.sqrt(np.diag(law.covariance.matrix))
    assert deviations[0] == pytest.approx(0.0257, rel=0.05)
    assert deviations[3:] == pytest.approx([0.0154, 0.0206], rel=0.06)
    correlation = law.covariance.matrix / np.outer(deviations, deviations)
    assert correlation[1, 3] > 0.999
    assert correlation[2, 4] > 0.999


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x", "E": 1, "A": 2, "alpha": 0.3, "B": 4}, "'beta' is missing"),
        ({"name": "x", "E": 1, "K": 2, "gamma": 0.3, "colour": 1}, "it has no key 'colour'"),
        ({"name": "x", "E": -1, "K": 2, "gamma": 0.3}, "'E' is -1; it must be greater than or equal to 0"),
        ({"name": "x", "E": 1, "K": 0, "gamma": 0.3}, "'K' is 0; it must be greater than 0"),
        ({"name": "x", "E": 1, "K": "big", "gamma": 0.3}, "'K' is big; it must be a valid number"),
        ({"name": "x", "form": "cubic", "E": 1}, "the form 'cubic' is unknown. Choose from parametric, compute"),
    ],
)
def test_wrong_laws_say_what_is_wrong(entry, message):
    with pytest.raises(UserError, match=message):
        law_from_dict(entry, where="my.json")


def test_a_law_of_the_user_comes_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"E": 1.5, "A": 400, "alpha": 0.34, "B": 410, "beta": 0.28}))
    assert get_law(path).name == "mine"
    assert get_law(path).constants == {"E": 1.5, "A": 400, "alpha": 0.34, "B": 410, "beta": 0.28}
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        get_law(path)
    with pytest.raises(UserError, match=r"absent\.json' cannot be read: No such file"):
        get_law(tmp_path / "absent.json")


def test_unknown_law_suggests_a_near_name():
    with pytest.raises(UserError, match="Did you mean 'besiroglu2024'"):
        get_law("besiroglu")


def test_covariance_of_log_e_becomes_one_of_e():
    entry = {
        "name": "x",
        "E": 2.0,
        "K": 3.0,
        "gamma": 0.1,
        "covariance": {
            "order": ["gamma", "lnE", "lnK"],
            "matrix": np.diag([1.0, 4.0, 9.0]).tolist(),
            "dof": 5,
            "source": "test",
        },
    }
    law = law_from_dict(entry, where="here")
    assert isinstance(law, ComputeLaw)
    assert law.covariance is not None
    assert np.diag(law.covariance.matrix) == pytest.approx([16.0, 9.0, 1.0])
    entry["covariance"] = {**entry["covariance"], "order": ["gamma", "lnK", "E2"]}
    with pytest.raises(UserError, match="covariance must be square, over E, lnK, gamma"):
        law_from_dict(entry, where="here")


def test_scaling_needs_no_model():
    imported = set()
    for path in Path(scaling.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    assert "numpy" in imported
    assert not imported & {"torch", "lm_eval", "transformers", "sae_lens"}


def test_laws_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_law("besiroglu2024").E = 0.0  # type: ignore[misc]
