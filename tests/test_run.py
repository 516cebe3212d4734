"""The command run and what stands behind it, on the embedded world."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from folders import contents
from rich.console import Console

from sae_lm_eval import UserError, run
from sae_lm_eval.results.results import read_results
from sae_lm_eval.runs import run as running
from sae_lm_eval.runs.grouping import divide
from sae_lm_eval.runs.run import evaluate
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import Sweep, sweep_of, variant_requests
from sae_lm_eval.runtime.host_memory import HostMemoryError
from sae_lm_eval.runtime.journal import DiskError, Journal
from sae_lm_eval.runtime.progress import ConsoleProgress
from sae_lm_eval.runtime.run_files import GROUPS
from sae_lm_eval.runtime.run_folder import added_names, held, journal_of, remembered

K4, K32 = "world#blocks.2.hook_resid_post.k4", "world#blocks.2.hook_resid_post.k32"
BASIC = {"model_args": {"pretrained": "world"}, "tasks": ["sae_world_homes"], "limit": 4, "device": "cpu"}
TOLD = Path(__file__).parent / "data" / "told"
COMMAND = [str(Path(sys.executable).parent / "sae-lm-eval"), "run"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def sweep(*variants, **other) -> Sweep:
    return sweep_of({**BASIC, "variants": list(variants), **other})


def evaluated(planned: Sweep, folder: Path) -> running.Finished:
    return evaluate(planned, lm_eval_config(planned), folder)


def without_journals(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith(".answers")}


def provenance(folder: Path) -> dict:
    (results,) = folder.glob("*/results_*.json")
    return json.loads(results.read_text())["config"]["sae_lm_eval"]


class TestSweepFiles:
    def test_patterns_of_the_registry_and_of_the_world(self):
        requests = variant_requests([{"pattern": "world#blocks.*.k32", "layer": [1, 3]}])
        assert [request.arguments["sae"] for request in requests] == [
            f"world#blocks.{i}.hook_resid_post.k32" for i in (1, 3)
        ]
        entry = {"pattern": "gemma-scope-2b-pt-res#layer_*/width_16k/*", "width": "16k", "l0": [70, 72], "layer": 8}
        (request,) = variant_requests([entry])
        assert request.arguments["sae"] == "gemma-scope-2b-pt-res#layer_8/width_16k/average_l0_71"

    def test_all_layers_at_once(self):
        (request,) = variant_requests([{"pattern": "world#blocks.*.k32", "together": "all", "name": "circuit"}])
        assert request.name == "circuit"
        assert request.specs == tuple(f"world#blocks.{i}.hook_resid_post.k32" for i in (1, 2, 3))

    def test_a_list_of_scales_is_a_variant_each(self):
        requests = variant_requests([{"sae": K4, "name": "k4", "scale": [0, 0.5]}])
        assert [(request.name, request.arguments["scale"]) for request in requests] == [
            ("k4,scale=0", 0),
            ("k4,scale=0.5", 0.5),
        ]

    def test_controls_of_equal_sites_are_one(self):
        entries = [{"sae": K4, "name": "k4", "scale": 0.5}, {"sae": K32, "name": "k32"}]
        zero, first, second = (
            next(request for request in variant_requests(entries, ["zero", "random_error"]) if request.name == name)
            for name in ("k4,zero", "k4,random_error", "k32,random_error")
        )
        assert zero.control_of == ("k4", "k32")
        assert "scale" not in zero.arguments
        assert (first.control_of, second.control_of) == (("k4",), ("k32",))
        assert first.arguments["scale"] == 0.5
        assert len(variant_requests(entries, ["zero", "random_error"])) == 5

    def test_a_site_that_is_named_is_that_of_the_dictionary(self):
        entries = [{"sae": K4, "name": "k4"}, {"sae": K32, "name": "k32", "hook": "blocks.2.hook_resid_post"}]
        assert [request.name for request in variant_requests(entries, ["zero"])] == ["k4", "k32", "k4,zero"]

    def test_equal_variants_of_the_sites_alone_are_one(self, caplog):
        import logging

        logging.getLogger("lm_eval").propagate = True
        entries = [{"sae": sae, "name": name, "splice": "zero"} for sae, name in ((K4, "first"), (K32, "second"))]
        with caplog.at_level(logging.WARNING, logger="lm_eval"):
            assert [request.name for request in variant_requests(entries)] == ["first"]
        assert [r.message for r in caplog.records] == ["second computes the same as first, and is left out."]
        half = [entries[0], {**entries[1], "scale": 0.5}]
        assert [request.name for request in variant_requests(half)] == ["first", "second"]
        requests = variant_requests([{"sae": K4, "name": "k4"}, half[1]], ["zero"])
        assert [request.name for request in requests] == ["k4", "second", "k4,zero"]

    def test_a_control_that_is_asked_for_anyway_is_that_variant(self):
        requests = variant_requests(
            [{"sae": K4, "name": "k4"}, {"sae": K32, "splice": "zero", "name": "nothing"}], ["zero"]
        )
        assert [(request.name, request.control_of) for request in requests] == [("k4", ()), ("nothing", ("k4",))]

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ({"variants": [{"sea": K4}]}, "variants, entry 1 has no key 'sea'. Did you mean 'sae'"),
            ({"variants": [{"name": "k4"}]}, "variants, entry 1: give either sae, pattern or edit, or peft by itself."),
            ({"variants": []}, "variants: there are none: give a list"),
            ({"variants": [K4], "controls": ["zeros"]}, "controls: 'zeros' is unknown. Did you mean 'zero'?"),
            ({"variants": [K4], "controls": ["mean"]}, "controls: 'mean' needs mean_text: FILE"),
            ({"variants": [K4], "memory": "much"}, "memory: 'much' is no number of gigabytes"),
            ({"variants": [{"sae": K4, "name": "../k4"}]}, "variants, entry 1: '../k4' is no name for a folder"),
            ({"variants": [{"sae": K4, "name": "Report"}]}, "variants, entry 1: 'Report' is the name of something"),
            ({"variants": [{"sae": K4, "name": "a"}, {"sae": K32, "name": "A"}]}, "variants: two are called 'a' and"),
            ({"variants": [{"pattern": "world#*.k5"}]}, "No dictionary of the embedded world matches 'world#*.k5'."),
            ({"variants": [{"pattern": "world#*.k4", "l0": ">9"}]}, "variants, entry 1: none of the 3 dictionaries"),
            ({"variants": [{"pattern": "world#*.k4", "l0": "few"}]}, "l0: 'few' is no filter: give a number"),
            ({"variants": [{"pattern": "world#*", "together": "all"}]}, "variants, entry 1, together: world#blocks.1"),
            ({"variants": [K4], "model_args": {"sae": K4}}, "variants: two are called 'world_blocks.2.hook"),
        ],
    )
    def test_mistakes_are_told_with_their_key(self, content, sentence):
        with pytest.raises(UserError) as error:
            sweep_of({**BASIC, **content})
        assert str(error.value).startswith(sentence)

    def test_long_names_fit_a_folder_and_stay_apart(self):
        specs = "+".join(f"org/some-rather-long-repository-name#layers/{i}/width_16k" for i in range(20))
        request, other = variant_requests([specs, f"{specs}1"])
        assert len(request.name.encode()) <= 200
        assert request.name != other.name


def test_groups_fill_the_memory_and_shared_dictionaries_count_once():
    sizes = {"a": {"x": 6}, "a zero": {"x": 6}, "b": {"y": 5}, "c": {"z": 20}, "d": {"y": 5}}
    assert divide(sizes, budget=10) == [["a", "a zero"], ["b"], ["c"], ["d"]]
    assert divide(sizes, budget=100, most=2) == [["a", "a zero"], ["b", "c"], ["d"]]


def test_from_python(tmp_path):
    comparison = run(
        model_args="pretrained=world",
        variants=[{"sae": K4, "name": "k4"}],
        controls=["random_error"],
        tasks="sae_world_homes",
        output_path=tmp_path,
        limit=4,
        device="cpu",
    )
    assert [variant.name for variant in comparison.variants] == ["k4", "k4,random_error"]
    assert set(comparison.drops["variant"]) == {"k4", "k4,random_error"}
    assert provenance(tmp_path / "k4,random_error")["control_of"] == ["k4"]
    assert not (tmp_path / journal_of()).exists()
    with pytest.raises(UserError, match=r"run takes no 'limits'\. Did you mean 'limit'"):
        run(model_args={}, variants=[K4], tasks="sae_world_homes", output_path=tmp_path, limits=4)


def test_a_run_that_was_refused_is_no_other_run(tmp_path):
    """The mended call may use its folder, unless something was answered there."""
    settings = {"model_args": "pretrained=world", "variants": [{"sae": K4, "name": "k4"}], "device": "cpu"}
    arguments = {"tasks": "sae_world_homes", "output_path": tmp_path, **settings}
    for mistake, message in (
        ({"samples": {"sae_world_homes": [999]}}, "no document 999"),
        ({"limit": 2, "apply_chat_template": True}, "no chat template"),
    ):
        with pytest.raises(UserError, match=message):
            run(**arguments, **mistake)
        assert {path.name for path in tmp_path.iterdir()} <= {".lock", "run.log"}
    run(**arguments, limit=2)
    for mistake in ({"limit": 3}, {"limit": 2, "apply_chat_template": True}):
        with pytest.raises(UserError, match="holds a run with other"):
            run(**arguments, **mistake)
    assert (tmp_path / "run.json").is_file()


def test_answers_of_a_run_that_failed_are_kept(tmp_path):
    def failing():
        with remembered(tmp_path, {"model_args": {}}, ["baseline"]):
            with contextlib.closing(Journal(tmp_path / journal_of())) as journal:
                journal.put("model", {b"asked": b"answer"})
            raise UserError("full")

    with pytest.raises(UserError, match="full"):
        failing()
    assert (tmp_path / "run.json").is_file()
    with pytest.raises(UserError, match="holds a run with other"), remembered(tmp_path, {"model_args": 1}, []):
        pass


def test_from_python_on_text_alone(tmp_path):
    """No question is asked, so nothing is paired; what was measured is there."""
    settings = {"model_args": "pretrained=world", "variants": [{"sae": K4, "name": "k4"}], "limit": 2, "device": "cpu"}
    comparison = run(tasks="sae_fidelity_world", output_path=tmp_path, **settings)
    assert comparison.drops.empty
    measured = comparison.fidelity.set_index(["variant", "task", "metric"])["value"]
    assert measured["k4", "sae_fidelity_world", "l0"] == 4
    assert measured["k4", "sae_fidelity_world", "ce_delta"] == pytest.approx(comparison.table().loc[1, "delta CE"])
    assert comparison.report(tmp_path / "page").is_file()


def test_what_was_answered_is_not_run_again(tmp_path, monkeypatch):
    """Cut short at its second batch, a run continues with it and ends with the same files."""
    planned = sweep({"sae": K4, "name": "k4"}, limit=200)
    evaluated(planned, tmp_path / "whole")
    put, kept = Journal.put, []

    def put_once(self, models, answers):
        if len(kept) == 1:
            raise KeyboardInterrupt
        kept.append(len(answers))
        put(self, models, answers)

    monkeypatch.setattr(Journal, "put", put_once)
    with pytest.raises(KeyboardInterrupt):
        evaluated(planned, tmp_path / "cut")
    assert not (tmp_path / "cut" / "baseline").exists()
    monkeypatch.setattr(Journal, "put", put)
    finished = evaluated(planned, tmp_path / "cut")
    assert finished.requests == 2 * 800  # of the baseline and k4
    assert 0 < sum(kept) <= finished.shared - 800 < 800
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    again = evaluated(planned, tmp_path / "cut")
    assert again.requests == 0


@pytest.mark.parametrize(
    "settings",
    [
        # More than a batch of texts, each drawn by chance.
        {
            "tasks": ["told"],
            "include_path": str(TOLD),
            "gen_kwargs": {"do_sample": True, "temperature": 1.0},
            "batch_size": 4,
            "limit": 12,
        },
        {"tasks": ["sae_fidelity_world"], "limit": 6},
    ],
    ids=["texts that are drawn", "fidelity"],
)
def test_neither_is_what_no_loglikelihood_tells(settings, tmp_path, monkeypatch):
    """Cut short behind every text that is generated, or read for fidelity, a run ends with the same files."""
    planned = sweep({"sae": K4, "name": "k4"}, **settings)
    whole = evaluated(planned, tmp_path / "whole")
    put = Journal.put

    def put_and_stop(self, models, answers):
        put(self, models, answers)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "put", put_and_stop)
    cuts = 0
    while True:
        try:
            evaluated(planned, tmp_path / "cut")
            break
        except KeyboardInterrupt:
            cuts += 1
    # Behind the 24 texts, the KL along the baseline's.
    assert cuts == (25 if "told" in settings["tasks"] else 2)
    assert whole.requests == (24 if "told" in settings["tasks"] else 0)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_dictionary_that_fails_is_left_out_and_tried_again(tmp_path):
    missing = tmp_path / "later"
    planned = sweep({"sae": K4, "name": "k4"}, {"sae": str(missing), "name": "mine"})
    finished = evaluated(planned, tmp_path / "out")
    assert [(outcome.name, outcome.failed is None) for outcome in finished.outcomes] == [
        ("baseline", True),
        ("k4", True),
        ("mine", False),
    ]
    assert (tmp_path / "out" / "k4").is_dir()
    from sae_lm_eval import world

    missing.symlink_to(world.dictionary_path("blocks.3.hook_resid_post.k4"))
    assert not evaluated(planned, tmp_path / "out").failed
    assert json.loads((tmp_path / "out" / GROUPS).read_text())["groups"] == [["k4"], ["mine"]]


def test_dictionaries_are_let_go_with_their_group(tmp_path, monkeypatch):
    from sae_lm_eval.dictionaries import loading as dictionary

    alive: list[weakref.ref] = []
    most = 0
    load = dictionary.load_dictionaries

    def watched(source, **kwargs):
        nonlocal most
        (loaded,) = load(source, **kwargs)
        if source in (K4, K32):
            gc.collect()
            alive.append(weakref.ref(loaded.module))
            most = max(most, sum(ref() is not None for ref in alive))
        return (loaded,)

    monkeypatch.setattr(dictionary, "load_dictionaries", watched)
    evaluated(sweep({"sae": K4, "name": "k4"}, {"sae": K32, "name": "k32"}, controls=["zero"], memory=1e-4), tmp_path)
    assert len(alive) >= 4
    assert most == 1


class TestAddedVariants:
    def test_one_more_leaves_the_others_as_they_are(self, tmp_path):
        evaluated(sweep({"sae": K4, "name": "k4"}), tmp_path)
        before = {name: content for name, content in contents(tmp_path).items() if name.startswith(("baseline", "k4"))}
        stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*")}
        finished = evaluated(sweep({"sae": K32, "name": "k32"}), tmp_path)
        assert [outcome.name for outcome in finished.outcomes] == ["baseline", "k4", "k32"]
        assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
        assert before == {name: content for name, content in contents(tmp_path).items() if name in before}
        evaluated(sweep({"sae": K4, "name": "k4"}, {"sae": K32, "name": "k32"}), tmp_path / "at once")
        scores = [read_results(tmp_path / folder / "k32").scores for folder in ("", "at once")]
        assert scores[0] == scores[1]
        assert added_names(tmp_path) == ("k32",)
        assert added_names(tmp_path / "at once") == ()
        assert evaluated(sweep({"sae": K4, "name": "k4"}), tmp_path).requests == 0  # the same again takes nothing away
        assert added_names(tmp_path) == ("k32",)

    @pytest.mark.parametrize("record", ["[1]", '{"variants": [1]}', '{"variants": [{"name": "a"}]}', "{"])
    def test_a_record_that_is_none(self, tmp_path, record):
        (tmp_path / "run.json").write_text(record)
        with pytest.raises(UserError, match=r"not a record of a run|holds a run with other|cannot be read"):
            evaluated(sweep({"sae": K32, "name": "k32"}), tmp_path)


class TestTrouble:
    def test_another_process(self, tmp_path):
        with held(tmp_path), pytest.raises(UserError, match="Another process is at work in"):
            evaluated(sweep(K4), tmp_path)

    def test_another_sweep(self, tmp_path):
        evaluated(sweep({"sae": K4, "name": "one"}), tmp_path)
        with pytest.raises(UserError, match=r"holds a run with other variants: 'one' was asked for with .*k4"):
            evaluated(sweep({"sae": K32, "name": "one"}), tmp_path)
        with pytest.raises(UserError, match=r"holds a run with other limit: 4 there, 5 here\. Give another"):
            evaluated(sweep({"sae": K4, "name": "one"}, limit=5), tmp_path)

    def test_every_dictionary_fails(self, tmp_path):
        with pytest.raises(UserError, match=r"None of the variants could be made\. The world has no dictionary 'k5'"):
            evaluated(sweep("world#k5"), tmp_path)

    def test_a_full_disk_while_results_are_written(self, tmp_path, monkeypatch):
        planned = sweep({"sae": K4, "name": "k4"})
        write, full = Path.write_text, [True]

        def write_half(self, text, *args, **kwargs):
            if full[0] and self.name.startswith("results_"):
                write(self, text[: len(text) // 2], *args, **kwargs)
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, text, *args, **kwargs)

        monkeypatch.setattr(Path, "write_text", write_half)
        with pytest.raises(DiskError, match=r"results of 'baseline' were not written whole .* same command continues"):
            evaluated(planned, tmp_path)
        assert not (tmp_path / "baseline").exists()
        full.clear()
        full.append(False)
        finished = evaluated(planned, tmp_path)
        assert finished.shared == finished.requests > 0
        assert not list(tmp_path.glob(".baseline"))

    def test_a_full_disk_under_the_journal(self, tmp_path):
        journal = Journal(tmp_path / "answers")
        journal.put("m", {b"1": b"one"})
        journal._store.execute("pragma max_page_count = 4")
        with pytest.raises(DiskError, match=r"The answers cannot be kept in .*full"):
            journal.put("m", {bytes([i]): b"x" * 10_000 for i in range(9)})
        journal.close()
        assert Journal(tmp_path / "answers").get("m", b"1") == b"one"

    def test_flipped_bits_in_the_journal_change_no_result(self, tmp_path, monkeypatch, caplog):
        planned = sweep({"sae": K4, "name": "k4"})
        monkeypatch.setattr(running, "delete_journals", lambda _folder: None)
        evaluated(planned, tmp_path / "sound")
        expected = without_journals(contents(tmp_path / "sound"))
        journal = journal_of(0)
        sound = (tmp_path / "sound" / journal).read_bytes()
        rng, warnings = random.Random(1), 0
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            damaged = bytearray(sound)
            for _ in range(3):
                damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
            (folder / journal).write_bytes(damaged)
            caplog.clear()
            evaluated(planned, folder)
            warnings += "The journal of answers is damaged" in caplog.text
            assert without_journals(contents(folder)) == expected
        assert warnings

    @pytest.mark.parametrize(
        "name", [".run.json.part", "run.json", "run.log", "report", "where", ".baseline", ".lock", ".k4", "c.csv"]
    )
    def test_symbolic_links_are_not_written_through(self, tmp_path, name):
        target = tmp_path / "mine"
        target.write_text("mine")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).symlink_to(target)
        with pytest.raises(UserError, match=rf"{re.escape(name)}' is a symbolic link"):
            evaluated(sweep({"sae": K4, "name": "k4"}), tmp_path / "out")
        assert target.read_text() == "mine"

    @pytest.mark.parametrize("name", [".identity.json", "run.log", ".answers.0.sqlite", "extra.csv"])
    def test_pipes_are_not_written_to(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=rf"{re.escape(name)}' is neither a file nor a folder"):
            evaluated(sweep({"sae": K4, "name": "k4"}), tmp_path)

    def test_a_folder_that_is_removed_in_the_middle(self, tmp_path):
        def write():
            shutil.rmtree(tmp_path / "out")
            (tmp_path / "out" / "a").write_text("")

        with pytest.raises(DiskError, match="was removed or replaced while the run"), held(tmp_path / "out"):
            write()

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[...] DefaultCPUAllocator: can't allocate")])
    def test_too_little_memory_of_the_host_leaves_no_variant_out(self, tmp_path, monkeypatch, error):
        def look(self, name):
            raise error

        monkeypatch.setattr(running.LoadedSweep, "look", look)
        with pytest.raises(UserError, match="The memory of this machine does not suffice"):
            evaluated(sweep(K4), tmp_path)

    def test_out_of_memory_in_a_variant_is_no_failure_of_the_variant(self, tmp_path, monkeypatch):
        evaluate_one = running._Evaluation._evaluate

        def evaluate_k4(self, name, lm, **facts):
            if name != "baseline":
                raise HostMemoryError("The memory of this machine does not suffice.")
            evaluate_one(self, name, lm, **facts)

        monkeypatch.setattr(running._Evaluation, "_evaluate", evaluate_k4)
        with pytest.raises(HostMemoryError):
            evaluated(sweep({"sae": K4, "name": "k4"}), tmp_path)
        monkeypatch.undo()
        done = evaluated(sweep({"sae": K4, "name": "k4"}), tmp_path)
        assert done.shared == done.requests > 0, "what was answered is kept"

    @pytest.mark.parametrize(
        ("pattern", "damage"),
        [
            ("k4/*/results_*.json", lambda content: content[:50]),
            ("k4/*/results_*.json", None),
            ("baseline/*/samples_*.jsonl", lambda content: b"".join(content.splitlines(keepends=True)[:-1])),
            ("k4/*/samples_*.jsonl", lambda content: content.replace(b'"doc_id"', b'"doc_\xff"', 1)),
            ("baseline/*/documents_*.parquet", lambda content: content[:-99]),
            ("baseline/*/documents_*.parquet", None),
        ],
        ids=[
            *("results cut", "results gone", "a document gone", "no text"),
            *("documents cut", "documents gone"),
        ],
    )
    def test_damaged_results_are_made_anew(self, tmp_path, capfd, pattern, damage):
        planned = sweep({"sae": K4, "name": "k4"})
        evaluated(planned, tmp_path)
        before = contents(tmp_path)
        (file,) = tmp_path.glob(pattern)
        file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
        name = pattern.split("/")[0]
        evaluated(planned, tmp_path)
        assert (
            f"The results of '{name}' are damaged: set aside as '{tmp_path}/.{name}.damaged'" in capfd.readouterr().err
        )
        shutil.rmtree(tmp_path / f".{name}.damaged")
        assert contents(tmp_path) == before

    def test_a_folder_that_cannot_be(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be made: File exists"):
            evaluated(sweep(K4), tmp_path / "file")


class TestCommand:
    def said(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *arguments], env=ENVIRONMENT, capture_output=True, text=True)

    def test_the_documented_sweep(self, tmp_path):
        """The example of docs/sweeps.md, with fewer questions, and its plan."""
        text = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
        example = text.split("```yaml\n")[1].split("```")[0]
        file = tmp_path / "sweep.yaml"
        file.write_text(example)
        planned = self.said(str(file), "--plan", "--output_path", str(tmp_path / "out"))
        assert planned.returncode == 0, planned.stderr
        assert "for what is left, by a part of it that was run just now" in planned.stdout
        assert not (tmp_path / "out").exists()
        said = self.said(str(file), "--limit", "2", "--output_path", str(tmp_path / "out"))
        assert said.returncode == 0, said.stderr
        names = [line.split("\t")[0] for line in planned.stdout.splitlines()[1:] if "\t" in line]
        assert all((tmp_path / "out" / name).is_dir() for name in ["baseline", "report", *names])
        assert "100%|" not in said.stdout + said.stderr
        assert "100%|" in (tmp_path / "out" / "run.log").read_text(), "bars of the libraries"

    @pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is not kept elsewhere")
    @pytest.mark.slow
    @pytest.mark.parametrize("gigabytes", [1.2, 2.0])
    def test_too_little_memory_is_a_sentence(self, tmp_path, gigabytes):
        arguments = ["--model_args", "pretrained=world", "--sae", K4, "--tasks", "sae_world_homes", "--limit", "2"]
        limit = int(gigabytes * 1e9)
        said = subprocess.run(
            [*COMMAND, *arguments, "--device", "cpu", "--output_path", str(tmp_path)],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )
        assert "is left out" not in said.stdout + said.stderr
        assert said.returncode in (0, 2)
        assert said.returncode == 0 or "The memory of this machine does not suffice" in said.stderr

    def test_a_failure_says_so_by_its_exit_code(self, tmp_path):
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "cfg.json").write_text('{"architecture": "standard", "d_in": 64, "d_sae": 8}')
        arguments = ["--model_args", "pretrained=world", "--sae", K4, "--sae", str(mine), "--tasks", "sae_world_homes"]
        said = self.said(*arguments, "--limit", "2", "--output_path", str(tmp_path))
        assert said.returncode == 1
        assert said.stderr.count(f"The files of '{mine}' cannot be had: there is no") == 1
        assert f"Failed, as said above: {str(mine).strip('/').replace('/', '_')}." in said.stderr
        assert (tmp_path / "report" / "report.html").is_file()

    def test_interrupted(self, tmp_path):
        arguments = ["--model_args", "pretrained=world", "--sae", K4, "--tasks", "sae_world"]
        process = subprocess.Popen(
            [*COMMAND, *arguments, "--output_path", str(tmp_path)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        while not (tmp_path / journal_of()).exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        assert process.returncode == 130
        assert said.rstrip().endswith("Interrupted. The same command continues from here.")
        assert "Traceback" not in said


def test_an_interrupt_that_a_library_swallows_comes_again_at_the_next_step():
    before = signal.getsignal(signal.SIGINT)
    with ConsoleProgress(Console(quiet=True), 1) as shown:
        shown.at("loading")
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            shown.at("the next step")
    assert signal.getsignal(signal.SIGINT) is before
