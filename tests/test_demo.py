"""The embedded world through the adapter, and the demo that a newcomer runs first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from sae_lm_eval import SaeHFLM, UserError, demo, world
from sae_lm_eval.paired import paired_drop

MIDDLE = "world#blocks.2.hook_resid_post.k4"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_the_names_of_the_world_are_known_to_the_adapter():
    lm = SaeHFLM(pretrained="world", sae=MIDDLE)
    (splice,) = lm.variant.splices
    assert splice.dictionary.name == MIDDLE
    assert splice.dictionary.model_names == ("world",)
    assert str(splice.site_out.write) == "model.layers.2.output"
    ids = torch.tensor([lm.tok_encode("the")])
    assert lm._model_call(ids).shape[:2] == ids.shape


def test_its_dictionaries_were_trained_behind_a_bos_and_get_one():
    lm = SaeHFLM(pretrained="world", sae=MIDDLE)
    assert lm.tok_encode("the")[0] == lm.tokenizer.bos_token_id
    assert HFLM(pretrained=str(world.model_path()), device="cpu").tok_encode("the")[0] != lm.tokenizer.bos_token_id


def test_no_other_model_is_warned_of(caplog):
    SaeHFLM(pretrained="world", sae=MIDDLE)
    assert not [r for r in caplog.records if "was trained on" in r.message]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("world#blocks.2.hook_resid_post.k5", "The world has no dictionary 'blocks.2.hook_resid_post.k5'. Nearest: "),
        ("world", "The world has no dictionary ''. It has blocks.1.hook_resid_post.k32, "),
        (f"{MIDDLE}@main", "The embedded world has no revisions: leave out @main."),
    ],
)
def test_unknown_names(spec, sentence):
    with pytest.raises(UserError) as told:
        SaeHFLM(pretrained="world", sae=spec)
    assert str(told.value).startswith(sentence)


class TestTable:
    ANSWERS = {  # noqa: RUF012
        "baseline": {"sae_world_a": dict.fromkeys(range(40), True), "sae_world_b": dict.fromkeys(range(40), True)},
        "worse": {
            "sae_world_a": dict.fromkeys(range(40), False),
            "sae_world_b": dict.fromkeys(range(39, -1, -1), True),
        },
    }
    GROUPS = {"sae_world_a": "language", "sae_world_b": "language"}  # noqa: RUF012

    def rows(self) -> list[demo.Row]:
        return demo.table(self.ANSWERS, self.GROUPS)

    def test_each_category_is_paired_with_the_baseline(self):
        a, b = self.rows()
        assert (a.category, a.variant, a.group) == ("a", "worse", "language")
        assert a.drop == paired_drop([True] * 40, [False] * 40)
        assert (a.significant, b.significant) == (True, False)

    def test_as_markdown_and_csv(self, tmp_path):
        demo.write(self.rows(), tmp_path)
        report = (tmp_path / "report.md").read_text()
        assert "| language | a | 100.0 | 100.0±" in report
        drops = pd.read_csv(tmp_path / "drops.csv")
        assert drops["lost"].tolist() == [40, 0]
        assert drops["drop_pp"].tolist() == [100.0, 0.0]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[str, pd.DataFrame]:
    """What the command prints and writes, without a network."""
    folder = tmp_path_factory.mktemp("demo")
    command = [str(Path(sys.executable).parent / "sae-lm-eval"), "demo", "--output_path", str(folder)]
    said = subprocess.run(command, env=OFFLINE, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert not said.stderr
    return said.stdout, pd.read_csv(folder / "drops.csv")


def test_a_folder_that_cannot_be_is_told_of_first(tmp_path):
    (tmp_path / "a_file").write_text("")
    command = [str(Path(sys.executable).parent / "sae-lm-eval"), "demo", "--output_path", str(tmp_path / "a_file")]
    said = subprocess.run(command, env=OFFLINE, capture_output=True, text=True)
    assert said.returncode == 2
    assert said.stderr.strip().endswith("cannot be made: File exists. Give another --output_path.")


def test_the_command_prints_the_table(report):
    printed, _ = report
    assert demo.TITLE in printed
    assert all(category in printed for category in ("agreement", "villages", "kinship"))
    assert all(run.name in printed for run in demo.RUNS)
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("Written"))
    assert "…" not in printed


def test_its_story_is_true(report):
    """Fewer elements hurt more, some categories more than others, and zeros most of all."""
    _, drops = report
    mean = drops.groupby("variant")["drop_pp"].mean()
    assert mean["SAE k32"] < mean["SAE k4"] < mean["zero"]
    k4 = drops[drops["variant"] == "SAE k4"].set_index("category")
    assert k4.loc["villages", "low_pp"] > k4.loc["agreement", "high_pp"]


def test_accuracies_are_those_of_the_model_card(report):
    _, drops = report
    measured = world.facts()["measured"]["baseline"]["categories"]
    baseline = drops.drop_duplicates("category").set_index("category")["baseline_accuracy"]
    for category, said in measured.items():
        assert baseline[category] == pytest.approx(said["accuracy"], abs=0.02)


def test_lm_evals_own_command_runs_on_it(tmp_path):
    arguments = f"--model sae_hf --model_args pretrained=world,sae={MIDDLE} --tasks sae_world_homes --limit 20"
    command = [str(Path(sys.executable).parent / "lm_eval"), *arguments.split(), "--output_path", str(tmp_path)]
    said = subprocess.run(command, env=OFFLINE, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    written = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    assert written["results"]["sae_world_homes"]["acc,none"] > 0.5
    assert written["config"]["sae_lm_eval"]["splices"][0]["dictionary"] == MIDDLE
