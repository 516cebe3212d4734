"""What `where` finds is what is so: carriers of the embedded world, and dictionaries that are wrong in known places."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lm_eval import UserError, world
from sae_lm_eval.attribution.directions import Moments, moments_of
from sae_lm_eval.comparison.restored import ACCURACY, KL, MARGIN
from sae_lm_eval.runs.inquiry import Inquiry
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.runs.where import explain_drops
from sae_lm_eval.splicing.splice import Variant

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
BY_NUMBER = rf"regex:number=\b({'|'.join(NUMBERS)})\b"
TASKS = ["sae_world_villages", "sae_world_arithmetic"]
COMMAND = [str(Path(sys.executable).parent / "sae-lm-eval"), "where"]
STORIES = "stories/sae-stories3M#blocks.2.hook_resid_post.topk8"


class WrongOnSome(torch.nn.Module):
    """Gives back what it is given, but for embeddings of some tokens, of which it leaves nothing."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wrong = (x[..., None, :] == self.embeddings).all(-1).any(-1)
        return torch.where(wrong[..., None], 0.0, x)


def explained(variant, tasks, folder: Path, *by: str, limit: int):
    given = {"model_args": {"pretrained": "world"}, "variants": [variant], "tasks": tasks, "limit": limit}
    sweep = sweep_of({**given, "device": "cpu"})
    (explanation,) = explain_drops(sweep, lm_eval_config(sweep), folder, Inquiry(by))
    return {(row["name"], row["measure"], row["division"], row["class"]): row for row in explanation.rows}


def test_a_dictionary_that_is_wrong_on_numbers_alone_is_found_to_be(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(str(world.model_path()))
    model = AutoModelForCausalLM.from_pretrained(str(world.model_path()))
    ids = [tokenizer.encode(word, add_special_tokens=False)[0] for word in NUMBERS]
    wrong = WrongOnSome(model.get_input_embeddings().weight[ids].detach().clone())
    variant = {"sae": wrong, "hook": "hook_embed", "name": "wrong"}
    rows = explained(variant, ["sae_world_arithmetic"], tmp_path, BY_NUMBER, "kind", limit=30)
    for measure in (ACCURACY, MARGIN, KL):
        number, rest = (rows["overall", measure, "number", name] for name in ("number", "the rest"))
        assert number["drop_low"] > 0
        assert (number["restored"], number["alone"]) == pytest.approx((1, 1), abs=1e-5)
        assert (rest["restored"], rest["alone"]) == pytest.approx((0, 0), abs=1e-5)
        # A random vector in the place of a number costs too, but says nothing of where the dictionary is wrong.
        assert rows["overall", measure, "number", "the rest"]["random"] == pytest.approx(0, abs=1e-5)
        assert rows["overall", measure, "kind", "name"]["restored"] == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def carriers(tmp_path_factory):
    """A sparse dictionary at the first block, behind which attention has still to fetch most of what is known."""
    variant = "world#blocks.1.hook_resid_post.k4"
    return explained(variant, TASKS, tmp_path_factory.mktemp("where"), "segment", "kind", BY_NUMBER, limit=150)


def test_of_villages_the_name_is_what_carries_the_question(carriers):
    def row(division: str, name: str) -> dict:
        return carriers["sae_world_villages", MARGIN, division, name]

    name = row("kind", "name")
    assert name["restored_low"] > 0
    assert name["alone_low"] > 0
    assert name["restored"] == pytest.approx(row("segment", "question")["restored"], abs=0.05)
    assert name["alone"] > 3 * abs(name["random"])
    assert row("number", "number")["restored"] == 0


def test_of_sums_the_number_carries_and_the_name_does_not(carriers):
    number, name = (carriers["sae_world_arithmetic", KL, *key] for key in (("number", "number"), ("kind", "name")))
    assert number["restored_low"] > 0
    assert number["alone_low"] > 0
    assert name["restored_low"] <= 0 <= name["restored_high"]


class Flattened(torch.nn.Module):
    """Leaves a part of what lies along one direction: the error is linear in the activation, and has one component."""

    def __init__(self) -> None:
        super().__init__()
        direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
        self.register_buffer("direction", direction / direction.norm())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 3 * (x @ self.direction)[..., None] * self.direction


def test_an_error_along_one_direction_is_its_first_component_and_linear(tmp_path):
    variant = {"sae": Flattened(), "hook": "blocks.2.hook_resid_post", "name": "flat"}
    tasks = ["sae_world_villages", "sae_world_homes"]
    rows = explained(variant, tasks, tmp_path, "direction", "component", limit=120)
    record = json.loads((tmp_path / "where" / "flat.json").read_text())
    assert record["held_out"] is True
    assert record["documents"] == 120
    assert record["energy"]["component: first 1"] == pytest.approx(1, abs=1e-4)
    assert record["energy"]["direction: linear in the activation"] == pytest.approx(1, abs=0.05)
    linear, rest, first = (
        rows["overall", KL, *key]
        for key in (("direction", "linear in the activation"), ("direction", "not linear"), ("component", "first 1"))
    )
    assert (first["restored"], first["alone"]) == pytest.approx((1, 1), abs=1e-3)
    assert (linear["restored"], linear["alone"]) == pytest.approx((1, 1), abs=0.15)
    assert (rest["restored"], rest["alone"]) == pytest.approx((0, 0), abs=0.15)
    assert linear["restored"] == pytest.approx(1 - rest["alone"], abs=1e-4)


def test_an_error_that_is_the_same_everywhere_is_linear_by_its_mean():
    moments, generator = Moments(Variant(())), torch.Generator().manual_seed(0)
    y = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    moments.by_hook["a"] = moments_of(y, torch.ones_like(y))
    linear, rest = moments.classes(("direction",), moments)
    assert linear.energy == pytest.approx(1, abs=1e-6)
    assert rest.energy == pytest.approx(0, abs=1e-6)
    part = linear.parts["a"](y.float(), y.float(), torch.ones_like(y).float())
    torch.testing.assert_close(part, torch.ones_like(part), atol=1e-3, rtol=0)


def test_a_dictionary_without_an_error_has_no_part_of_it():
    moments = Moments(Variant(()))
    moments.by_hook["a"] = moments_of(
        torch.randn(200, 6, dtype=torch.float64), torch.zeros(200, 6, dtype=torch.float64)
    )
    assert all(math.isnan(part.energy) for part in moments.classes(("direction", "component"), moments))


def test_a_fit_to_too_few_positions_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs twice as many as values: ask more documents"):
        explained("world#blocks.2.hook_resid_post.k4", ["sae_world_homes"], tmp_path, "direction", limit=4)


# -- real input ---------------------------------------------------------------------------------------------


def record_of(environment: dict[str, str], folder: Path, *flags: str) -> dict:
    command = [*COMMAND, "--model_args", "pretrained=stories3M", "--device", "cpu", "-o", str(folder), *flags]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (file,) = (folder / "where").glob("*.json")
    return json.loads(file.read_text())


def coverage(record: dict, division: str) -> dict[str, dict]:
    return {row["class"]: row for row in record["coverage"] if row["division"] == division}


@pytest.mark.slow
def test_blimp_on_a_real_model_has_a_critical_word(hub_environment, tmp_path):
    task = "blimp_regular_plural_subject_verb_agreement_1"
    record = record_of(hub_environment, tmp_path, "--sae", STORIES, "--tasks", task, "--limit", "60", "--by", "segment")
    covered = coverage(record, "segment")
    assert covered["answer: difference"]["documents"] == 60
    assert covered["last token"]["positions"] == 1
    assert not covered["few-shot header"]["documents"] + covered["options"]["documents"]
    rows = {(row["measure"], row["class"]): row for row in record["rows"]}
    together = rows["kl", "all classes together"]
    assert together["restored_low"] > 0.8
    # Of the margin nothing is lost before the choices differ, but for what the later words see of it.
    assert rows["kl", "answer: difference"]["restored_low"] > 0


@pytest.mark.slow
def test_mmlu_with_five_shots_has_its_parts(hub_environment, tmp_path):
    flags = ("--sae", STORIES, "--tasks", "mmlu_virology", "--num_fewshot", "5", "--limit", "8", "--by", "segment")
    record = record_of(hub_environment, tmp_path, *flags)
    covered = coverage(record, "segment")
    for name in ("few-shot header", "question", "options", "answer prefix", "last token"):
        assert covered[name]["documents"] == 8, name
    assert covered["few-shot header"]["positions"] > 5 * covered["question"]["positions"]
    assert covered["not aligned"]["documents"] == 0
    assert record["aligned"] == 1


DIGITS = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from test_where_truth import WrongOnSome


def make():
    tokenizer = AutoTokenizer.from_pretrained("stories3M")
    ids = [i for i in range(len(tokenizer)) if any(c.isdigit() for c in tokenizer.decode([i]))]
    return WrongOnSome(AutoModelForCausalLM.from_pretrained("stories3M").get_input_embeddings().weight[ids].detach())
"""


@pytest.mark.slow
def test_a_dictionary_that_is_wrong_on_digits_alone_is_found_on_real_text(hub_environment, tmp_path):
    (tmp_path / "mine.py").write_text(DIGITS)
    environment = {
        **hub_environment,
        "PYTHONPATH": f"{Path(__file__).parent}:{sys.path[0]}:{hub_environment.get('PYTHONPATH', '')}",
    }
    sae = f"python:{tmp_path}/mine.py:make,hook=hook_embed"
    flags = ("--sae", sae, "--tasks", "mmlu_elementary_mathematics", "--limit", "12", "--by", "kind")
    record = record_of(environment, tmp_path / "out", *flags)
    rows = {row["class"]: row for row in record["rows"] if row["measure"] == "kl"}
    assert rows["digit"]["restored"] == pytest.approx(1, abs=1e-4)
    assert rows["digit"]["alone"] == pytest.approx(1, abs=1e-4)
    for name in rows.keys() - {"digit", "all classes together"}:
        assert rows[name]["restored"] == pytest.approx(0, abs=1e-4), name
