"""Weights & Biases: lm_eval's own flag works with sae_hf, and `run` says that it has none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

K4 = "world#blocks.2.hook_resid_post.k4"


@pytest.mark.slow
def test_lm_evals_flag_logs_a_spliced_model_as_any_other(tmp_path):
    pytest.importorskip("wandb")
    flags = ["--model", "sae_hf", "--model_args", f"pretrained=world,sae={K4}", "--tasks", "sae_world_homes"]
    flags += ["--limit", "2", "--device", "cpu", "--wandb_args", "project=numbers"]
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    process = subprocess.run(
        [sys.executable, "-m", "lm_eval", *flags], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    assert b"sae_world_homes" in log.read_bytes()


def test_run_says_where_to_log_instead(tmp_path):
    flags = ["--model_args", "pretrained=world", "--sae", K4, "--tasks", "sae_world_homes", "--output_path", "out"]
    flags += ["--wandb_args", "project=numbers"]
    process = subprocess.run(
        [sys.executable, "-m", "sae_lm_eval", "run", *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 2
    assert "run does not log to W&B: log the results folders afterwards" in " ".join(process.stderr.split())
    assert not (tmp_path / "out").exists()
