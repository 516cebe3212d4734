"""The commands that a report prints are run, and give the report's numbers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import sae_lm_eval
from sae_lm_eval.report import assemble
from sae_lm_eval.results import find
from sae_lm_eval.results.results import read_results


def test_each_command_gives_the_reports_numbers(tmp_path):
    sae_lm_eval.run(
        model_args="pretrained=world",
        variants=["world#blocks.2.hook_resid_post.k4"],
        tasks=["sae_world_villages", "sae_fidelity_world"],
        output_path=tmp_path / "out",
        limit=8,
        num_fewshot=2,
        metadata={"sae_fidelity_world": {"documents": 3}},
        device="cpu",
    )
    comparison = assemble.compare_tasks(*find.find_results(tmp_path / "out"))
    sources = assemble.build(comparison).sources
    assert sources[0].command.startswith("lm_eval --model sae_hf --model_args pretrained=world,splice=none,")
    for source, written in zip(sources, (comparison.baseline, *comparison.variants), strict=True):
        command = f"{sys.executable} -m {source.command} --device cpu"
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        again = read_results(tmp_path / source.command.split()[-1])
        assert again.scores == written.scores
        assert again.n_shot["sae_world_villages"] == 2
        assert again.provenance.get("fidelity") == written.provenance.get("fidelity")


def test_only_an_untouched_model_needs_no_dictionary():
    with pytest.raises(sae_lm_eval.UserError, match="sae= is missing"):
        sae_lm_eval.SaeHFLM(pretrained="world", splice="zero")
