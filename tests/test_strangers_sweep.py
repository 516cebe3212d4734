"""What a sweep file of somebody else's may have run: asked about before anything of it is honoured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sae_lm_eval import UserError
from sae_lm_eval.cli.code_of_files import RUNS_CODE, ask_about_code
from sae_lm_eval.cli.main import app

WHOLE = {
    "model_args": {"pretrained": "world"},
    "variants": ["world#blocks.2.hook_resid_post.k4"],
    "tasks": ["sae_world"],
}
FILES = {
    "an argument of the model": {**WHOLE, "model_args": {"pretrained": "world", "trust_remote_code": True}},
    "an argument in a text": {**WHOLE, "model_args": "pretrained=world,trust_remote_code=True"},
    "a setting": {**WHOLE, "trust_remote_code": True},
    "a setting that the model's arguments take back": {
        **WHOLE,
        "trust_remote_code": True,
        "model_args": {"pretrained": "world", "trust_remote_code": False},
    },
    "one of several models": {
        **WHOLE,
        "model_args": {
            "pretrained": ["world", {"pretrained": "world", "name": "b", "trust_remote_code": True}],
            "trust_remote_code": False,
        },
    },
    "code that the model writes": {**WHOLE, "confirm_run_unsafe_code": True},
}
NO_MODULES = """
import sys
from sae_lm_eval.cli.main import main
sys.argv = ["sae-lm-eval", "run", "sweep.yaml", "--output_path", "out"]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("case", FILES)
def test_without_a_terminal_nothing_is_run(case, tmp_path: Path):
    (tmp_path / "sweep.yaml").write_text(json.dumps(FILES[case]))
    said = subprocess.run(
        [sys.executable, "-c", NO_MODULES], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path
    )
    assert said.returncode == 2
    assert said.stderr.startswith("sae-lm-eval: 'sweep.yaml' sets ")
    assert said.stderr.endswith("Where you trust it, say so on the command line as well.\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", RUNS_CODE)
class TestTerminal:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch):
        monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())

    def test_it_is_asked(self, name, monkeypatch):
        questions = []
        monkeypatch.setattr(typer, "confirm", lambda question, **_: questions.append(question) or True)
        ask_about_code([{}, {name: True}], [{}], Path("sweep.yaml"))
        assert questions == [f"'sweep.yaml' sets {name}: {RUNS_CODE[name]}. Go on?"]

    def test_no_is_no(self, name, monkeypatch):
        monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
        with pytest.raises(UserError, match=r"Nothing was run\.$"):
            ask_about_code([{name: True}], [{}, {name: False}], Path("sweep.yaml"))

    def test_a_flag_says_it_already(self, name, monkeypatch):
        monkeypatch.setattr(typer, "confirm", lambda *_, **__: pytest.fail("asked"))
        ask_about_code([{name: True}], [{}, {name: True}], Path("sweep.yaml"))
        ask_about_code([{name: False}, {}], [{}], Path("sweep.yaml"))


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (
            {"model_args": {"pretrained": "world"}, "trust_remote_code": True},
            "run.json' sets trust_remote_code: Python",
        ),
        (
            {"model_args": {"pretrained": "world", "trust_remote_code": "yes"}},
            "run.json' sets trust_remote_code: Python",
        ),
        ({"model_args": ["world"]}, "'model_args' is ['world']; it must be a mapping"),
        ({"model_args": {"revision": "main"}}, "'model_args.pretrained' is missing"),
        ([], "run.json' is not the record of a run"),
    ],
)
def test_the_record_of_a_run_that_a_family_is_asked_by(record, sentence, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(record))
    said = CliRunner().invoke(app, ["curve", "--models", "world@step2616", "--like", str(tmp_path), "--tasks"])
    assert isinstance(said.exception, UserError)
    assert sentence in str(said.exception)
