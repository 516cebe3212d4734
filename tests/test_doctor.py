"""What the command says of itself and of the machine: help, version, doctor."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from sae_lm_eval.cli import doctor
from sae_lm_eval.cli.lm_eval_flags import OF_RUN, REFUSED, UNUSED, parser

COMMAND = [sys.executable, "-m", "sae_lm_eval"]


def said(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", **environment}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment)


def test_the_version():
    assert said("--version").stdout == f"sae-lm-eval {version('sae-lm-eval')}\n"


def test_help_imports_neither_torch_nor_lm_evals_tasks():
    code = (
        "import sys; sys.argv = ['sae-lm-eval', 'run', '--help']\n"
        "from sae_lm_eval.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print([name for name in ('torch', 'lm_eval.tasks', 'sae_lens') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_the_help_of_run_has_every_flag_that_it_passes_on():
    output = said("run", "--help").stdout
    passed = [action for action in parser()._actions if action.dest not in (*REFUSED, *UNUSED, *OF_RUN, "help")]
    assert len(passed) > 15
    assert [action.dest for action in passed if f"  {action.option_strings[0]}" not in output] == []
    assert "--wandb_args" not in output
    assert "sae-lm-eval run sweep.yaml" in output
    assert "controls, mean_text," in output
    assert max(map(len, output.splitlines())) <= 100


def test_doctor_finds_this_installation_sound_without_a_hub():
    done = said("doctor", HF_HUB_OFFLINE="1")
    findings = {line[:18].strip(): line[18:] for line in done.stdout.splitlines()}
    assert done.returncode == 0, done.stdout + done.stderr
    assert findings["lm-eval"] == version("lm_eval")
    assert findings["hub"].startswith("is not asked: HF_HUB_OFFLINE is set")
    assert findings["start-up hook"] == "is active"
    assert findings["sae_hf"].startswith("sae_lm_eval.harness.model.SaeHFLM of ")


def test_doctor_says_what_is_wrong_by_its_exit_code(tmp_path):
    done = said("doctor", SAE_LM_EVAL_AUTOLOAD="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "start-up hook     WRONG: is off: SAE_LM_EVAL_AUTOLOAD is 0" in done.stdout
    assert "hub               WRONG: http://127.0.0.1:9 does not answer (URLError: " in done.stdout
    assert f"cache             {tmp_path / 'hub'}, " in done.stdout


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert list(doctor.check_versions())[1:] == [("no-such-package", "is not installed: pip install it", False)]


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "there" / "hub"))
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name, value, fine = list(doctor.hub())[-1]
    assert (name, fine) == ("cache", False)
    assert value.endswith("GB are free, and nothing can be written")


@pytest.mark.parametrize("command", ["compare", "report", "inspect", "talk"])
def test_an_unknown_flag_of_any_command_is_told(command):
    done = said(command, "--no_such_flag")
    assert done.returncode == 2
    assert "No such option: --no" in done.stderr


@pytest.mark.parametrize("command", ["run", "where", "curve"])
def test_an_unknown_flag_beside_those_of_lm_eval_is_told(command):
    done = said(command, "--no_such_flag")
    assert done.returncode == 2
    assert done.stderr.startswith(f"sae-lm-eval: {command} has no flag '--no_such_flag'.")
