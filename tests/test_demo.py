"""The embedded world through the adapter, and the demo that a newcomer runs first."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from sae_lm_eval import SaeHFLM, UserError, world
from sae_lm_eval.cli import demo

MIDDLE = "world#blocks.2.hook_resid_post.k4"
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_the_names_of_the_world_are_known_to_the_adapter():
    lm = SaeHFLM(pretrained="world", sae=MIDDLE)
    (splice,) = lm.spliced.variant.splices
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
        (
            "world#blocks.2.hook_resid_post.k5",
            "The world has no dictionary 'blocks.2.hook_resid_post.k5'. Did you mean 'blocks.2.hook_resid_post.k",
        ),
        ("world", "The world has more than one dictionary: name one of blocks.1.hook_resid_post.k32, "),
        (f"{MIDDLE}@main", "The embedded world has no revisions: leave out @main."),
    ],
)
def test_unknown_names(spec, sentence):
    with pytest.raises(UserError) as error:
        SaeHFLM(pretrained="world", sae=spec)
    assert str(error.value).startswith(sentence)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[str, pd.DataFrame, Path]:
    """What the command prints and writes, without a network."""
    folder = tmp_path_factory.mktemp("demo")
    command = [str(Path(sys.executable).parent / "sae-lm-eval"), "demo", "--output_path", str(folder)]
    said = subprocess.run(command, env=OFFLINE, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return said.stdout, pd.read_csv(folder / "report" / "drops.csv"), folder


def test_a_folder_that_cannot_be_is_told_of_first(tmp_path):
    (tmp_path / "a_file").write_text("")
    command = [str(Path(sys.executable).parent / "sae-lm-eval"), "demo", "--output_path", str(tmp_path / "a_file")]
    said = subprocess.run(command, env=OFFLINE, capture_output=True, text=True)
    assert said.returncode == 2
    assert "is a file. Give another --output_path." in said.stderr


def test_the_command_prints_the_tables(report):
    printed, *_ = report
    assert "What each variant loses" in printed
    assert all(group in printed for group in ("language", "knowledge", "reasoning"))
    assert "Drop by task" not in printed
    assert all(variant["name"] in printed for variant in demo.SWEEP["variants"])
    assert len(printed.splitlines()) <= 24  # of one screen, where each row is a line
    assert printed.splitlines()[0].startswith("Of 4 reconstructions in world, transcoder costs least: ")
    assert re.fullmatch(r"To see every task and figure, open \S+report\.html", printed.splitlines()[-1])
    sentences = [line for line in printed.splitlines() if "\t" not in line and not line.startswith("To see ")]
    assert all(len(line) <= 80 for line in sentences)
    assert "…" not in printed


def test_it_writes_the_report_and_the_page(report):
    *_, folder = report
    written = {path.name for path in (folder / "report").iterdir()}
    assert written >= {"report.html", "report.md", "appendix.tex", "appendix.bib", "drops.csv", "fidelity.csv"}
    assert "<html" in (folder / "talk.html").read_text()
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= {"baseline", "k32", "k4", "zero"}


def test_the_table_of_the_readme_is_the_commands(report):
    """Its rows and columns to the letter, its numbers as near as another machine's arithmetic leaves them."""
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("argument_tables", root / "scripts" / "argument_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    now = module.of_demo(report[2])
    _, kept, _ = module.generated_parts.split((root / "README.md").read_text(), "demo")
    number = re.compile(r"(?<![\w.])[\u2212-]?\d+(?:\.\d+)?")
    assert [number.sub("N", line).replace("\\*", "") for line in now.splitlines()] == [
        number.sub("N", line).replace("\\*", "") for line in kept.splitlines()
    ]
    for new, old in zip(number.findall(now), number.findall(kept), strict=True):
        assert float(new.replace("\u2212", "-")) == pytest.approx(float(old.replace("\u2212", "-")), rel=0.3, abs=1)


def test_its_story_is_true(report):
    """Fewer latents hurt more, some categories more than others, and zeros most of all."""
    _, drops, _ = report
    drops = drops[(drops["section"] == "task") & (drops["metric"] == "acc")]
    mean = drops.groupby("variant")["drop"].mean()
    assert mean["k32"] < mean["k4"] < mean["zero"]
    k4 = drops[drops["variant"] == "k4"].set_index("name")
    assert k4.loc["sae_world_villages", "low"] > k4.loc["sae_world_agreement", "high"]


def test_accuracies_are_those_of_the_model_card(report):
    _, drops, _ = report
    drops = drops[(drops["section"] == "task") & (drops["metric"] == "acc")]
    measured = world.world_facts()["measured"]["baseline"]["categories"]
    baseline = drops.drop_duplicates("name").set_index("name")["baseline"]
    for category, said in measured.items():
        assert baseline[f"sae_world_{category}"] == pytest.approx(said["accuracy"], abs=0.02)


def test_lm_evals_own_command_runs_on_it(tmp_path):
    arguments = f"--model sae_hf --model_args pretrained=world,sae={MIDDLE} --tasks sae_world_homes --limit 20"
    command = [str(Path(sys.executable).parent / "lm_eval"), *arguments.split(), "--output_path", str(tmp_path)]
    said = subprocess.run(command, env=OFFLINE, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    written = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    assert written["results"]["sae_world_homes"]["acc,none"] > 0.5
    assert written["config"]["sae_lm_eval"]["splices"][0]["dictionary"] == MIDDLE
