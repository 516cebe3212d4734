"""A folder is not continued with another model, dictionary or text than its results were made of."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from folders import contents
from safetensors.torch import load_file, save_file

from sae_lm_eval import UserError, world
from sae_lm_eval.runs.identity_record import digest_of
from sae_lm_eval.runs.ray_cluster import Part
from sae_lm_eval.runs.run import evaluate
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import Sweep, sweep_of
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.run_files import IDENTITY
from sae_lm_eval.scoring import identity


class Files:
    """A model, a dictionary and a text of the user's, and a run of them in `out`."""

    def __init__(self, folder: Path):
        self.model, self.dictionary, self.text = folder / "model", folder / "dictionary", folder / "text.txt"
        shutil.copytree(world.model_path(), self.model)
        shutil.copytree(world.dictionary_path("blocks.2.hook_resid_post.k4"), self.dictionary)
        self.text.write_text("the cat is in the house . " * 40)
        self.out = folder / "out"

    def sweep(self) -> Sweep:
        variants = [
            {"sae": "world#blocks.2.hook_resid_post.k32", "name": "k32"},
            {"sae": str(self.dictionary), "name": "mine"},
            {"sae": str(self.dictionary), "name": "mean", "splice": "mean", "mean_text": str(self.text)},
        ]
        of_lm_eval = {"tasks": ["sae_world_homes"], "limit": 3, "device": "cpu"}
        return sweep_of({"model_args": {"pretrained": str(self.model)}, "variants": variants, **of_lm_eval})

    def run(self, out: Path | None = None):
        sweep = self.sweep()
        return evaluate(sweep, lm_eval_config(sweep), out or self.out)

    def train_model(self) -> None:
        train(self.model / "model.safetensors", "model.norm.weight")

    def train_dictionary(self) -> None:
        train(self.dictionary / "sae_weights.safetensors", "b_dec")


def train(file: Path, name: str) -> None:
    weights = load_file(file)
    weights[name] = (weights[name].float() + 0.5).to(weights[name].dtype)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture
def new_warnings(caplog):
    """Warnings of runs since it was called last."""
    logging.getLogger("lm_eval").propagate = True

    def warnings() -> list[str]:
        messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "lm_eval.runs" in r.name]
        caplog.clear()
        return messages

    return warnings


def interrupted(files: Files, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """A run that is cut short behind so many batches."""
    put, left = Journal.put, [after]

    def put_some(self, models, answers):
        put(self, models, answers)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "put", put_some)
        with pytest.raises(KeyboardInterrupt):
            files.run()


class TestAFinishedFolder:
    def test_is_left_as_it_is_where_nothing_changed(self, files, new_warnings):
        assert files.run().requests
        before = contents(files.out)
        for file in files.model.iterdir():  # as when the files are copied anew
            file.write_bytes(file.read_bytes())
        new_warnings()
        assert files.run().requests == 0
        assert not new_warnings()
        assert contents(files.out) == before

    def test_of_another_model(self, files):
        files.run()
        before = contents(files.out)
        files.train_model()
        sentence = (
            r"has results of baseline, k32, mean and mine, and the weights of the model has changed since: old and new "
            r"would be compared\. Give another --output_path, or delete it\."
        )
        with pytest.raises(UserError, match=sentence):
            files.run()
        assert contents(files.out) == before

    def test_of_another_configuration_of_the_model(self, files):
        files.run()
        config = json.loads((files.model / "config.json").read_text())
        (files.model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
        with pytest.raises(UserError, match="the configuration or the code of the model has changed since"):
            files.run()

    def test_of_another_dictionary(self, files, tmp_path):
        """The variant is named, and evaluated anew once its folder is deleted, as it is from scratch."""
        files.run()
        files.train_dictionary()
        sentence = (
            r"has results of 'mine', and the weights of .*dictionary has changed since\. Give another --output_path"
        )
        with pytest.raises(UserError, match=sentence) as error:
            files.run()
        assert f"or delete the folder '{files.out / 'mine'}', and 'mine' is evaluated anew." in str(error.value)
        shutil.rmtree(files.out / "mine")
        with pytest.raises(UserError, match="has results of 'mean', and the weights of"):
            files.run()
        shutil.rmtree(files.out / "mean")
        files.run()
        files.run(tmp_path / "scratch")
        again, scratch = contents(files.out), contents(tmp_path / "scratch")
        assert {name: again[name] for name in scratch if "samples" in name} == {
            name: scratch[name] for name in scratch if "samples" in name
        }
        assert files.run().requests == 0

    def test_of_a_dictionary_with_another_setting(self, files):
        files.run()
        config = json.loads((files.dictionary / "cfg.json").read_text())
        (files.dictionary / "cfg.json").write_text(json.dumps({**config, "k": config["k"] + 1}))
        with pytest.raises(UserError, match="has results of 'mine', and the configuration of"):
            files.run()

    def test_of_another_text(self, files):
        files.run()
        files.text.write_text("a dog . " * 200)
        with pytest.raises(UserError, match=r"has results of 'mean', and the text .*text\.txt has changed since"):
            files.run()

    def test_that_has_no_record(self, files, new_warnings):
        files.run()
        (files.out / IDENTITY).unlink()
        new_warnings()
        assert files.run().requests == 0
        (warned,) = new_warnings()
        assert "has no record of what its results were made of" in warned
        assert files.run().requests == 0
        assert not new_warnings()

    def test_whose_files_are_gone(self, files, new_warnings):
        files.run()
        shutil.rmtree(files.dictionary)
        new_warnings()
        finished = files.run()
        assert not finished.failed
        assert [message.split(":")[0] for message in new_warnings()] == [
            f"Whether '{name}' is still what was evaluated cannot be told" for name in ("mine", "mean")
        ]
        shutil.rmtree(files.model)
        assert not files.run().failed
        (warned,) = new_warnings()
        assert warned.startswith("Whether the results are still those of this model cannot be told: There is no model")


class TestAFolderThatWasCutShort:
    def test_behind_the_baseline(self, files, monkeypatch):
        from sae_lm_eval.runs import run as running

        check, seen = running.check_written, []

        def once(folder, lines):
            if seen:
                raise KeyboardInterrupt
            seen.append(folder)
            check(folder, lines)

        with monkeypatch.context() as patched:
            patched.setattr(running, "check_written", once)
            with pytest.raises(KeyboardInterrupt):
                files.run()
        assert (files.out / "baseline").is_dir()
        files.train_model()
        with pytest.raises(UserError, match="has results of baseline, and the weights of the model has changed since"):
            files.run()

    def test_before_anything_was_finished(self, files, monkeypatch, tmp_path, new_warnings):
        interrupted(files, monkeypatch, after=1)
        files.train_model()
        files.train_dictionary()
        new_warnings()
        finished = files.run()
        assert finished.shared < finished.requests
        warned = new_warnings()
        assert "the weights of the model changed since this run began: what had been answered is not used." in warned
        assert sum("changed since" in message for message in warned) == 3
        files.run(tmp_path / "scratch")
        assert contents(files.out) == contents(tmp_path / "scratch")

    def test_and_nothing_changed(self, files, monkeypatch, new_warnings):
        interrupted(files, monkeypatch, after=1)
        new_warnings()
        assert files.run().shared
        assert not new_warnings()


class TestPackages:
    @pytest.fixture
    def installed(self, monkeypatch):
        version, pretended = importlib.metadata.version, {}
        monkeypatch.setattr(importlib.metadata, "version", lambda name: pretended.get(name) or version(name))

        def pretend(name: str, wanted: str) -> None:
            pretended[name] = wanted
            identity._versions.cache_clear()

        yield pretend
        identity._versions.cache_clear()

    def test_a_patch_is_told_and_another_release_refused(self, files, installed, new_warnings):
        installed("transformers", "5.23.0")
        files.run()
        new_warnings()
        installed("transformers", "5.23.4")
        assert files.run().requests == 0
        assert new_warnings() == ["This run began with other packages: transformers was 5.23.0 and is 5.23.4."]
        installed("transformers", "5.24.0")
        with pytest.raises(
            UserError, match=r"made with other packages: transformers was 5\.23\.0 and is 5\.24\.0\. Give"
        ):
            files.run()

    def test_what_was_answered_before_a_patch_is_recalled(self, files, installed, monkeypatch, new_warnings):
        installed("torch", "2.13.0")
        interrupted(files, monkeypatch, after=1)
        installed("torch", "2.13.1+cu130")
        assert files.run().shared
        assert "This run began with other packages: torch was 2.13.0 and is 2.13.1+cu130." in new_warnings()


def test_the_record_is_the_same_on_every_run(files, tmp_path):
    files.run()
    files.run(tmp_path / "other")
    assert (files.out / IDENTITY).read_text() == (tmp_path / "other" / IDENTITY).read_text()
    record = json.loads((files.out / IDENTITY).read_text())
    assert record["packages"]["torch"] == torch.__version__


def test_parts_of_a_cluster_are_asked_for_again_where_something_changed(files):
    files.run()
    before = {name: digest_of(files.out, [name]) for name in ("k32", "mine")}
    shutil.rmtree(files.out / "mine")
    shutil.rmtree(files.out / "mean")
    files.train_dictionary()
    files.run()
    assert digest_of(files.out, ["k32"]) == before["k32"]
    assert digest_of(files.out, ["mine"]) != before["mine"]
    parts = [
        Part(("mine",), ("mine",), "task", False, digest) for digest in (before["mine"], digest_of(files.out, ["mine"]))
    ]
    assert parts[0].key != parts[1].key
