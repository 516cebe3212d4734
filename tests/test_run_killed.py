"""A run that is killed at random moments, and continued each time, ends with the files of one that was not."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from folders import contents

KILLS = 20
TOLD = Path(__file__).parent / "data" / "told"
COMMAND = [
    *("sae-lm-eval", "run", "--model_args", "pretrained=world"),
    *("--sae", "world#blocks.2.hook_resid_post.k4", "--control", "zero", "--include_path", str(TOLD)),
    *("--memory", "0.0001"),  # a forked pass for each variant
    *("--tasks", "sae_world_homes,read,told", "--limit", "6", "--device", "cpu"),
]


def command(output_path: Path) -> None:
    """The command in this process, whose stdout and stderr nobody reads."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.chdir(output_path.parent)  # outside a checkout, whose commit the results would hold
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.argv = [*COMMAND, "--output_path", str(output_path)]
    from sae_lm_eval.cli.main import main

    main()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    # Each run is a process of its own, forked from one that has imported what takes seconds and done nothing else.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["sae_lm_eval.harness.model", "sae_lm_eval.cli.report", "sae_lm_eval.report.assemble"]
    )

    def run(output_path: Path, seconds: float | None = None) -> bool:
        """Whether the run came to its end, and was not killed after so many seconds."""
        process = processes.Process(target=command, args=(output_path,))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -9)
        return process.exitcode == 0

    assert run(tmp_path / "warm")
    began = time.monotonic()
    assert run(tmp_path / "whole")
    took = time.monotonic() - began
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "warm") == whole
    assert {name.split("/")[0] for name in whole} > {"baseline", "report", "run.json"}
    killed, folder, rng = 0, tmp_path / "killed", np.random.default_rng(0)
    while killed < KILLS:
        if run(folder, seconds=rng.uniform(0, took)):
            assert contents(folder) == whole
            shutil.rmtree(folder)
        else:
            killed += 1
    assert run(folder)
    assert contents(folder) == whole
