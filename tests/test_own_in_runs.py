"""Modules and functions of the user's own in runs, in talk, and by `python:` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from sae_lm_eval import world
from sae_lm_eval.cli.main import app
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.dictionaries.presence import check_presence
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.runs.run import run
from sae_lm_eval.runs.sweep import variant_requests
from sae_lm_eval.talk.chosen import Sampling
from sae_lm_eval.talk.conversation import Conversation, Model

HOOK = "blocks.2.hook_resid_post"
SETTINGS = {"tasks": "sae_world_reasoning", "limit": 4, "device": "cpu"}
OWN = """
import torch

class Scaled(torch.nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
    def forward(self, x):
        return x * self.factor

def scaled(factor: float = 1.0, layer: int = 0):
    return Scaled(factor)

there = Scaled(0.25)
text = lambda: "a text"

def fails():
    raise RuntimeError("no weights")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


class Halves(nn.Module):
    def forward(self, x):
        return x * 0.5


def splices(folder: Path) -> list[dict]:
    (file,) = folder.glob("*/results_*.json")
    return json.loads(file.read_text())["config"]["sae_lm_eval"]["splices"]


class TestRun:
    def test_objects_are_variants_like_others(self, tmp_path):
        model = transformers.AutoModelForCausalLM.from_pretrained(world.model_path())
        tokenizer = transformers.AutoTokenizer.from_pretrained(world.model_path())
        arguments = {"model_args": {"pretrained": model, "tokenizer": tokenizer}, "output_path": tmp_path / "out"}
        given = [{"sae": nn.Identity(), "hook": HOOK}, {"sae": Halves(), "hook": HOOK, "name": "half"}]
        comparison = run(**arguments, variants=given, **SETTINGS)
        same = [row for row in comparison.drops.to_dict("records") if row["variant"].startswith("Identity,")]
        assert same
        assert {row["drop"] for row in same} == {0}
        assert splices(tmp_path / "out" / "half")[0]["dictionary"] == "<Halves>"
        again = run(**arguments, variants=given, **SETTINGS)
        assert again.drops.equals(comparison.drops)
        other = [given[0], {"sae": nn.Linear(128, 128), "hook": HOOK, "name": "half"}]
        with pytest.raises(UserError, match="'half' was asked for with"):
            run(**arguments, variants=other, **SETTINGS)

    def test_two_of_a_class_need_names(self):
        with pytest.raises(UserError, match="two are called 'Halves': give one another name"):
            variant_requests([Halves(), Halves()])

    def test_python_from_the_command_line(self, own, tmp_path):
        sweep = tmp_path / "sweep.yaml"
        sweep.write_text(
            json.dumps(
                {
                    "model_args": {"pretrained": "world"},
                    "tasks": ["sae_world_reasoning"],
                    "limit": 4,
                    "device": "cpu",
                    "variants": [
                        {"sae": f"python:{own}:scaled", "hook": HOOK, "arguments": {"factor": 0.5}, "name": "half"},
                        {"sae": f"python:{own}:scaled", "hook": HOOK, "name": "same"},
                    ],
                }
            )
        )
        assert app(["run", str(sweep), "--output_path", str(tmp_path / "out")], standalone_mode=False) in (None, 0)
        (splice,) = splices(tmp_path / "out" / "half")
        assert splice["dictionary"] == f"python:{own}:scaled?factor=0.5"
        assert len(splice["revision"]) == 32
        assert "made by Python of the user's own" in splice["remarks"][0]
        own.write_text(OWN.replace("x * self.factor", "x * self.factor + 0"))
        with pytest.raises(UserError, match=r"the configuration of python:.*scaled\?factor=0\.5 has changed since"):
            app(["run", str(sweep), "--output_path", str(tmp_path / "out")], standalone_mode=False)


def test_talk_takes_objects():
    args = {"pretrained": "world", "device": "cpu", "hook": HOOK, "sae": nn.Identity()}
    model = Model(args, [Halves()])
    exchange = Conversation(model, Sampling(max_new_tokens=4)).answer("the")
    baseline, same, _ = exchange.answers
    assert same.ids == baseline.ids
    assert [column.name for column in model.columns] == ["baseline", "<Identity>", "<Halves>"]


class TestPython:
    def test_a_function_is_called_with_its_arguments(self, own):
        dictionary = load_dictionary(f"python:{own}:scaled?factor=0.5&layer=3")
        x = torch.ones(2, 3, 8)
        assert torch.equal(dictionary.reconstruct(x), x * 0.5)

    def test_a_class_and_an_object_serve_too(self, own):
        x = torch.ones(2, 3, 8)
        assert torch.equal(load_dictionary(f"python:{own}:Scaled?factor=2").reconstruct(x), 2 * x)
        assert torch.equal(load_dictionary(f"python:{own}:there").reconstruct(x), x / 4)

    def test_a_module_by_its_name(self, own, monkeypatch):
        monkeypatch.chdir(own.parent)
        assert load_dictionary("python:own:scaled").name == "python:own:scaled"

    def test_source_and_arguments_decide(self, own):
        arguments = {"pretrained": "world", "device": "cpu", "hook": HOOK}
        identities = [
            SaeHFLM(**arguments, sae=f"python:{own}:scaled?factor={factor}").spliced.identity() for factor in (1, 2)
        ]
        own.write_text(OWN + "# a remark\n")
        identities.append(SaeHFLM(**arguments, sae=f"python:{own}:scaled?factor=1").spliced.identity())
        assert len(set(identities)) == 3

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("python:{}:nothing", r"'.*own\.py' has no 'nothing'\."),
            ("python:{}:scale", r"has no 'scale'\. Did you mean 'scaled'"),
            ("python:{}", r"names no function: write python:path/to/file\.py:function"),
            ("python:{}:scaled@v1", r"names no function"),
            ("python:{}:scaled?factor", r"are not of the form \?name=value&name=value\."),
            ("python:{}:scaled?rank=3", r"cannot be called so: got an unexpected keyword argument 'rank'\."),
            ("python:{}:there?factor=3", r"names an object that is there already"),
            ("python:{}:text", r"gives the text 'a text', where it must give a module"),
            ("python:{}:fails", r"fails: RuntimeError: no weights$"),
            ("python:nowhere.py:scaled", r"There is no file 'nowhere\.py' to run\."),
            ("python:no.such.module:scaled", r"There is no module 'no\.such\.module'"),
            ("org/name?rank=3", r"holds '=', which a spec cannot\."),
        ],
    )
    def test_a_mistake_is_told_in_a_sentence(self, own, spec, expected):
        with pytest.raises(UserError, match=expected) as error:
            load_dictionary(spec.format(own))
        assert "\n" not in str(error.value)

    def test_nothing_is_run_to_look_whether_it_is_there(self, tmp_path):
        path = tmp_path / "own.py"
        path.write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\n")
        check_presence(SaeSpec.parse(f"python:{path}:scaled"))
        assert not (tmp_path / "was run").exists()
        path.write_text("def broken(:\n")
        with pytest.raises(UserError, match=r"own\.py' cannot be run: SyntaxError"):
            check_presence(SaeSpec.parse(f"python:{path}:scaled"))


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "def make():\n    raise SystemExit(0)"], ids=["file", "call"])
def test_own_code_that_exits_does_not_end_the_run_as_if_it_was_done(code, tmp_path):
    (tmp_path / "leaves.py").write_text(code)
    with pytest.raises(UserError, match=r"leaves\.py.* (cannot be run|fails): SystemExit"):
        load_dictionary(f"python:{tmp_path / 'leaves.py'}:make")
