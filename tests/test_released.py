"""The script that checks released dictionaries: rehearsed on the world, its cases looked up as far as they can be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from sae_lm_eval.catalog import saelens_registry as registry
from sae_lm_eval.dictionaries.model_names import official_name

SCRIPTS = Path(__file__).parents[1] / "scripts"
CASES = yaml.safe_load((SCRIPTS / "released_dictionaries.yaml").read_text())
WORLD = {"pretrained": "world"}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reproduce_released", SCRIPTS / "reproduce_released.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["sae"])
def test_a_case_is_registered_and_of_its_model(case):
    (found,) = registry.search(case["sae"])
    assert found["verdict"] != "refused"
    assert official_name(found["model"]) == official_name(case["model_args"]["pretrained"])
    assert case["source"]
    assert all(asked["value"] and 0 < asked["within"] < 1 for asked in case["expected"].values())


def world_case(sae: str, **expected: tuple[float, float]) -> dict:
    return {
        "sae": f"world#blocks.2.hook_resid_post.{sae}",
        "model_args": WORLD,
        "task": "sae_fidelity_world",
        "source": "the model card",
        "expected": {name: {"value": value, "within": within} for name, (value, within) in expected.items()},
    }


@pytest.mark.parametrize(
    ("value", "verdict", "code"), [(4.0, "yes", 0), (5.0, "NO", 1)], ids=["as published", "not as published"]
)
def test_expected_and_found(script, tmp_path, capfd, value, verdict, code):
    cases = [world_case("k4", l0=(value, 0.01)), world_case("k32", l0=(32.0, 0.1), ce_baseline=(1.13, 0.2))]
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
    words = [str(tmp_path / "out"), "--cases", str(tmp_path / "cases.yaml"), "--limit", "4", "--device", "cpu"]
    assert script.main(words) == code
    said = capfd.readouterr().out
    (line,) = [line for line in said.splitlines() if "k4 " in line]
    assert line.split()[:2] == ["world#blocks.2.hook_resid_post.k4", "l0"]
    assert verdict in line.split()
    assert len(list((tmp_path / "out").iterdir())) == 1, "one model and text are one run"


def test_what_cannot_be_loaded_is_said_and_the_rest_goes_on(script, tmp_path, capfd):
    missing = {**world_case("k4", l0=(4.0, 0.01)), "model_args": {"pretrained": "no/such-model"}}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump([missing, world_case("k4", l0=(4.0, 0.01))]))
    words = [str(tmp_path / "out"), "--cases", str(tmp_path / "cases.yaml"), "--limit", "2", "--device", "cpu"]
    assert script.main(words) == 1
    said = capfd.readouterr()
    assert "There is no model 'no/such-model'" in said.err
    assert "Not checked: no/such-model." in said.out
    assert "yes" in said.out


def test_a_name_that_no_case_has(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path), "--only", "gtp2"])
    assert "No case has 'gtp2'" in capsys.readouterr().err
