"""The script that checks released dictionaries: on the world, and from end to end on rebuilt repositories.

The rebuilt ones have the real names and random weights, so nothing agrees with what was published. They rehearse names:
of repositories, files, hooks, tokenizers, data sets, tasks and metrics.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import yaml
from conftest import hub_environment_of, serving
from released_hub import write

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
    (match,) = registry.search(case["sae"])
    assert match["verdict"] != "refused"
    assert official_name(match["model"]) == official_name(case["model_args"]["pretrained"])
    for expectation in case["expected"]:
        assert expectation["value"] is None or (
            expectation["value"] and 0 < expectation["within"] < 1 and expectation["source"]
        )


def world_case(sae: str, **expected: tuple[float, float]) -> dict:
    return {
        "sae": f"world#blocks.2.hook_resid_post.{sae}",
        "model_args": WORLD,
        "task": "sae_fidelity_world",
        "expected": [
            {"metric": name, "value": value, "within": within, "source": "the model card"}
            for name, (value, within) in expected.items()
        ],
    }


@pytest.mark.parametrize(
    ("value", "verdict", "code"), [(4.0, "yes", 0), (5.0, "different", 1)], ids=["as published", "not as published"]
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


MODELS = sorted({case["model_args"]["pretrained"] for case in CASES})


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """The environment of a command that sees the rebuilt repositories."""
    folder = tmp_path_factory.mktemp("rebuilt")
    write(folder / "root")
    with serving(folder / "root") as address:
        yield hub_environment_of(address, folder / "home")


def rows_of(said: str) -> list[list[str]]:
    lines = said.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.split()[:2] == ["dictionary", "metric"]]
    return [line.split() for line in lines[start + 1 :] if "#" in line]


def as_found(script, cases: list[dict], folder: Path) -> list[dict]:
    """The cases with what a run found as what is expected."""
    checks = iter(script.checks(cases, folder))
    return [
        {
            **case,
            "expected": [
                {**expectation, "value": next(checks).measured, "within": 1e-6} for expectation in case["expected"]
            ],
        }
        for case in cases
    ]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_name_leads_somewhere(script, rebuilt, model, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_ENDPOINT", rebuilt["HF_ENDPOINT"])
    monkeypatch.setenv("HF_HOME", rebuilt["HF_HOME"])
    cases = [case for case in CASES if case["model_args"]["pretrained"] == model]
    expected = [expectation for case in cases for expectation in case["expected"]]
    words = [str(tmp_path / "out"), "--limit", "1", "--batch_size", "8", "--device", "cpu"]
    assert script.main([*words, "--only", model]) == 1
    said = capfd.readouterr()
    assert "Not checked" not in said.out, said.err[-3000:]
    rows = rows_of(said.out)
    assert len(rows) == len(expected)
    assert not any("n/a" in row for row in rows), said.out
    assert sum("published" in row for row in rows) == sum(expectation["value"] is None for expectation in expected)
    assert any("different" in row for row in rows)

    (folder,) = (tmp_path / "out").iterdir()
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(as_found(script, cases, folder)))
    assert script.main([*words, "--cases", str(tmp_path / "cases.yaml")]) == 0
    assert f"0 of {len(expected)} published values are different" in capfd.readouterr().out
