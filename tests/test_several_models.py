"""One set of dictionaries in several models: what is asked, what is wrong with it, the runs and their tables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import random_model, random_sae, word_tokenizer
from runs import answers, question, write_run

from sae_lm_eval.comparison.compare import paired_comparison
from sae_lm_eval.comparison.transfer_gap import gap
from sae_lm_eval.errors import UserError
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.report.transfer import Transfer, read_transfer, trained_here, transfer_report
from sae_lm_eval.report.transfer_tables import HOME, gap_table
from sae_lm_eval.runs.run import run
from sae_lm_eval.runs.several_models import (
    check_models,
    foreign_dictionaries,
    lists_models,
    model_notes,
    remember_models,
    sweeps_of,
)

K4, K32 = "world#blocks.2.hook_resid_post.k4", "world#blocks.2.hook_resid_post.k32"


def content(pretrained, **other) -> dict:
    return {
        "model_args": {"pretrained": pretrained},
        "tasks": "sae_world_reasoning",
        "variants": [{"sae": K4, "name": "k4"}],
        "limit": 3,
        "device": "cpu",
        **other,
    }


# -- what is asked -------------------------------------------------------------------------------------------


def test_entries_are_names_revisions_and_mappings():
    sweeps = sweeps_of(
        content(["world", "world@step4088", {"pretrained": "org/chat", "name": "chat", "apply_chat_template": True}])
    )
    assert list(sweeps) == ["world", "step4088", "chat"]
    assert sweeps["world"].model_args == {"pretrained": "world"}
    assert Path(sweeps["step4088"].model_args["pretrained"]).name == "step4088"
    assert sweeps["chat"].settings["apply_chat_template"] is True
    assert "apply_chat_template" not in sweeps["world"].settings
    assert sweeps["chat"].model_args == {"pretrained": "org/chat"}


def test_revisions_of_one_model():
    sweep = content("EleutherAI/pythia-70m")
    sweep["model_args"] |= {"revision": ["step1000", "main"], "dtype": "float32"}
    assert lists_models(sweep["model_args"])
    sweeps = sweeps_of(sweep)
    assert list(sweeps) == ["pythia-70m,step1000", "pythia-70m"]
    assert sweeps["pythia-70m,step1000"].model_args == {
        "pretrained": "EleutherAI/pythia-70m",
        "revision": "step1000",
        "dtype": "float32",
    }


def test_a_list_of_one_is_a_table_of_one_and_models_that_end_alike_have_whole_names():
    assert list(sweeps_of(content(["world"]))) == ["world"]
    assert list(sweeps_of(content(["a/gemma", "b/gemma"]))) == ["a_gemma", "b_gemma"]


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        ([], "pretrained: the list is empty"),
        (["world", "world"], "'world' and 'world.*' are the same model, asked alike|two models are called 'world'"),
        (["world", {"pretrained": "world", "name": "other"}], "'world' and 'other' are the same model, asked alike"),
        (["a/b", {"pretrained": "c/d", "name": "b"}], "two models are called 'b'"),
        (["world", 3], "entry 2: 3 names no model"),
        (["world", ["world"]], r"entry 2: \['world'\] names no model"),
        (["world", {"name": "x"}], "names no model: give pretrained"),
        (["world", "@x"], "'@x' names no model"),
        (["world", "world@"], "'world@' names no model"),
        (["world", {"pretrained": "a", "name": "report"}], "'report' is the name of something else"),
        (["world", {"pretrained": "a", "name": "a/b"}], "'a/b' is no name for a folder"),
        (["world", "world@step9"], "step9"),
    ],
)
def test_a_wrong_list_is_told_in_a_sentence(pretrained, message):
    with pytest.raises(UserError, match=message):
        sweeps_of(content(pretrained))


def test_two_lists_are_refused():
    sweep = content(["world", "gpt2"])
    sweep["model_args"]["revision"] = ["a", "b"]
    with pytest.raises(UserError, match="pretrained and revision are both lists"):
        sweeps_of(sweep)
    sweep["model_args"] = {"pretrained": "gpt2", "revision": []}
    with pytest.raises(UserError, match="revision: the list is empty"):
        sweeps_of(sweep)


# -- what is told before anything is loaded --------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Models of other widths, layers and tokens than the world's."""
    parent = tmp_path_factory.mktemp("models")
    for name in ("narrow", "chat"):
        model, tokenizer = random_model("llama"), word_tokenizer()
        if name == "chat":
            tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        model.save_pretrained(parent / name)
        tokenizer.save_pretrained(parent / name)
    return {path.name: path for path in parent.iterdir()}


def test_widths_layers_and_what_is_not_there_are_told_first(folders, tmp_path):
    with pytest.raises(UserError, match=r"differ in the width of their streams \(world 128, narrow 32\), and world#"):
        check_models(sweeps_of(content(["world", str(folders["narrow"])])), tmp_path)
    deep = {"variants": [{"sae": "world#blocks.3.hook_resid_post.k4"}]}
    with pytest.raises(UserError, match=r"layer 3, and the layers of .* run from 0 to 2"):
        check_models(sweeps_of(content([str(folders["narrow"]), str(folders["chat"])], **deep)), tmp_path)
    with pytest.raises(UserError, match=r"^nowhere: There is no model"):
        check_models(sweeps_of(content(["world", {"pretrained": str(tmp_path), "name": "nowhere"}])), tmp_path / "o")
    with pytest.raises(UserError, match="no_task"):
        check_models(sweeps_of(content(["world", "world@step4088"], tasks="no_task")), tmp_path)


def test_a_template_that_one_of_them_lacks_is_told_first(folders, tmp_path):
    edits = {"variants": [{"edit": "prune?share=0.1"}]}
    pair = [str(folders["narrow"]), str(folders["chat"])]
    with pytest.raises(UserError, match="The tokenizer of narrow has no chat template: give apply_chat_template"):
        check_models(sweeps_of(content(pair, apply_chat_template=True, **edits)), tmp_path)
    sweeps = sweeps_of(content([pair[0], {"pretrained": pair[1], "apply_chat_template": True}], **edits))
    check_models(sweeps, tmp_path)
    assert model_notes(sweeps) == [
        "Questions are asked behind a chat template of chat, and of narrow without one: each drop is against the same "
        "model asked alike."
    ]


def test_all_models_with_a_template_and_all_without_one_are_named(folders):
    chat, plain = str(folders["chat"]), str(folders["narrow"])
    entries = [
        *({"pretrained": chat, "name": name, "apply_chat_template": True} for name in ("first", "second")),
        *({"pretrained": plain, "name": name, "revision": name} for name in ("third", "fourth")),
    ]
    entries[1]["revision"] = "other"
    sentences = model_notes(sweeps_of(content(entries, variants=[{"edit": "prune?share=0.1"}])))
    assert sentences == [
        "Questions are asked behind a chat template of first and second, and of third and fourth without one: each "
        "drop is against the same model asked alike."
    ]


def test_a_transfer_and_another_tokenizer_are_said_once(folders):
    sweeps = sweeps_of(content(["world", str(folders["narrow"])]))
    assert model_notes(sweeps) == [
        "Transfer: into narrow go dictionaries that were trained on world.",
        "The tokenizer of narrow has other tokens than that of world.",
    ]


def test_the_folder_of_a_model_is_not_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="out/b' is a symbolic link, which is not written through"):
        remember_models(sweeps_of(content(["a", "b"])), tmp_path / "out")
    assert not (tmp_path / "out" / "models.json").exists()


def test_the_folder_of_one_model_and_that_of_several_are_not_mixed(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="holds the run of one model"):
        check_models(sweeps_of(content(["world"])), tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "models.json").write_text(json.dumps({"models": {"world": {"pretrained": "gpt2"}}}))
    with pytest.raises(UserError, match="holds a run of another model as 'world'"):
        check_models(sweeps_of(content(["world"])), tmp_path / "two")
    with pytest.raises(UserError, match="holds the runs of several models"):
        run(**{**content("world"), "output_path": tmp_path / "two"})
    (tmp_path / "two" / "models.json").write_text(json.dumps({"models": {"../one": {"pretrained": "gpt2"}}}))
    with pytest.raises(UserError, match=r"record of a run: 'models\.\.\./one"):
        check_models(sweeps_of(content(["world"])), tmp_path / "two")
    (tmp_path / "two" / "models.json").write_text("[]")
    with pytest.raises(UserError, match="record of a run"):
        check_models(sweeps_of(content(["world"])), tmp_path / "two")


# -- the runs and their tables ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The world and one of its checkpoints with two dictionaries and a control."""
    folder = tmp_path_factory.mktemp("transfer") / "out"
    sweep = folder.parent / "sweep.yaml"
    sweep.write_text(
        "model_args: {pretrained: [world, {pretrained: world@step4088, name: earlier}]}\n"
        "tasks: [sae_world_homes, sae_world_villages, sae_fidelity_world]\n"
        "limit: 10\ndevice: cpu\ncontrols: [zero]\n"
        f"variants: [{{sae: '{K4}', name: k4}}, {{sae: '{K32}', name: k32}}]\n"
    )
    done = command("run", str(sweep), "--output_path", str(folder))
    assert done.returncode == 0, done.stderr
    (folder.parent / "stdout").write_text(done.stdout)
    (folder.parent / "stderr").write_text(done.stderr)
    return folder


def command(*words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    whole = [sys.executable, "-m", "sae_lm_eval", *words]
    return subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)


def test_a_run_of_several_models_has_a_run_of_each_and_one_report(out):
    assert {path.name for path in out.iterdir()} == {"world", "earlier", "models.json", "report"}
    for name in ("world", "earlier"):
        assert {"baseline", "k4", "k32", "run.json", "report"} <= {path.name for path in (out / name).iterdir()}
    shown = (out.parent / "stdout").read_text()
    assert "What each variant costs in each model" in shown
    page = (out / "report" / "report.html").read_text()
    for title in ("What each variant costs in each model", "Delta CE in each model", "Drop by model and variant"):
        assert title in page
    assert (out / "report" / "figures" / "heat-map.svg").is_file()
    assert "{" in (out / "report" / "appendix.tex").read_text()
    stderr = (out.parent / "stderr").read_text()
    assert "say nothing of the dictionary" not in stderr


def test_each_drop_is_against_the_model_itself(out):
    transfer = read_transfer(out)
    for name, comparison in transfer.comparisons.items():
        others = [out / name / variant for variant in ("k4", "k32", "k4,zero")]
        alone = paired_comparison(out / name / "baseline", others)
        for variant in ("k4", "k32"):
            expected = alone.drops[(alone.drops["section"] == "overall") & (alone.drops["variant"] == variant)].iloc[0]
            cell = transfer.table().set_index(["variant", "model"]).loc[(variant, name)]
            assert cell["drop"] == pytest.approx(expected["drop"])
            assert (cell["low"], cell["high"]) == pytest.approx((expected["low"], expected["high"]))
        assert comparison.baseline.model_args["pretrained"]
    (table,) = transfer.matrices()
    assert [column.heading for column in table.columns] == ["variant", "world", "earlier"]
    assert [row[0].text for row in table.rows] == ["baseline", "k4", "k32", "zero"]
    assert table.rows[1][1].text.endswith(HOME)
    assert not table.rows[1][2].text.endswith(HOME)
    assert transfer.own == {"world": {"k4", "k32"}, "earlier": frozenset()}
    assert len(transfer.matrices("task")) == 2


@pytest.mark.parametrize("format", ["text", "markdown", "latex", "csv"])
def test_the_table_in_every_format(out, format):
    done = command("table", str(out), "--format", format)
    assert done.returncode == 0, done.stderr
    for word in ("world", "earlier", "k4", "k32"):
        assert word in done.stdout
    done = command("table", str(out), "--format", format, "--by", "task")
    assert "homes" in done.stdout
    assert "villages" in done.stdout


def test_tasks_of_several_models_are_not_sorted(out):
    done = command("table", str(out), "--sort", "drop")
    assert done.returncode == 2
    assert "--sort orders the tasks of one model" in done.stderr


def test_by_what_there_is_not(out):
    done = command("table", str(out), "--by", "category")
    assert (done.returncode, done.stdout) == (2, "")
    assert "There is nothing to show by category" in done.stderr
    done = command("report", str(out), "--scores", "x.csv")
    assert done.returncode == 2
    assert "--scores is for the run of one model" in done.stderr


def test_the_same_command_continues_and_a_model_may_be_added(out, tmp_path):
    sweep = content(["world", {"pretrained": "world@step4088", "name": "earlier"}])
    sweep |= {"tasks": ["sae_world_homes", "sae_world_villages", "sae_fidelity_world"], "limit": 10}
    sweep |= {"controls": ["zero"], "variants": [{"sae": K4, "name": "k4"}, {"sae": K32, "name": "k32"}]}
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/*/*/results_*.json")}
    transfer = run(**sweep, output_path=out)
    assert isinstance(transfer, Transfer)
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/*/*/results_*.json")} == before
    assert list(transfer.comparisons) == ["world", "earlier"]
    assert set(transfer.drops["model"]) == {"world", "earlier"}
    assert re.match("<3 variants in 2 models: world, earlier>", repr(transfer))
    assert "<table" in transfer._repr_html_()
    assert transfer.report(tmp_path / "report").is_file()


def test_the_plan_says_what_each_model_would_run(out, tmp_path):
    sweep = out.parent / "sweep.yaml"
    done = command("run", str(sweep), "--output_path", str(out), "--plan")
    assert done.returncode == 0, done.stderr
    assert "Model 1 of 2, world:" in done.stdout
    assert "Model 2 of 2, earlier:" in done.stdout
    assert done.stdout.count("nothing is left to run") == 2
    done = command("run", str(sweep), "--output_path", str(tmp_path / "o"), "--fewshot_seeds", "1,2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--fewshot_seeds is for a run of one model" in done.stderr


def test_code_in_an_entry_is_asked_about(tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "model_args: {pretrained: [world, {pretrained: a/b, trust_remote_code: true}]}\n"
        f"tasks: sae_world_homes\nvariants: ['{K4}']\n"
    )
    done = command("run", str(sweep), "--output_path", str(tmp_path / "o"))
    assert done.returncode == 2
    assert "sets trust_remote_code" in done.stderr


def test_where_takes_one_model(tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"model_args: {{pretrained: [world]}}\ntasks: sae_world_homes\nvariants: ['{K4}']\n")
    done = command("where", str(sweep), "--output_path", str(tmp_path / "o"))
    assert done.returncode == 2
    assert "only run takes a list of models" in done.stderr


def test_p_of_the_table_is_that_of_the_stars(tmp_path):
    """Six lost answers have p = 2 / 2^6, and by Holm's method three times that where three models lose them."""
    comparisons = {
        name: compared(tmp_path / name, np.ones(40), np.r_[np.zeros(6), np.ones(34)])
        for name in ("one", "two", "three")
    }
    transfer = Transfer(comparisons, {})
    assert transfer.drops.query("section == 'overall'")["p"].tolist() == pytest.approx([2 / 2**6] * 3)
    for by in (None, "task"):
        assert transfer.table(by)["p_adjusted"].tolist() == pytest.approx([6 / 2**6] * 3)
        (table,) = transfer.matrices(by)
        assert not any("*" in cell.text for cell in table.rows[1])


def test_a_report_shows_one_task_once_and_colours_reconstructions_in_the_order_of_the_table(tmp_path):
    comparisons = {}
    for model in ("one", "two"):
        folder = tmp_path / model
        for name, wrong, splice in (("baseline", 0, "none"), ("k4", 1, "reconstruction"), ("zero", 9, "zero")):
            config = {"sae_lm_eval": {"splice": splice}}
            write_run(
                folder / name, answers({"t": np.r_[np.zeros(wrong), np.ones(20 - wrong)]}), config=config, model=name
            )
        write_run(folder / "k32", answers({"t": np.ones(20)}), config={"sae_lm_eval": {"splice": "reconstruction"}})
        comparisons[model] = paired_comparison(folder / "baseline", [folder / name for name in ("k4", "zero", "k32")])
    report = transfer_report(Transfer(comparisons, {}))
    assert [table.title for table in report.tables] == ["What each variant costs in each model"]
    (picture,) = report.pictures
    names = [row[0].text for row in report.tables[0].rows[1:]]
    assert [label.get_text() for label in picture.figure.axes[0].get_xticklabels()] == names[:2]


def models_of(folder: Path, trained_on: str, trained: bool = True, **model_args: dict) -> dict:
    """By name the comparisons of models asked for so, all with a dictionary that names `trained_on`."""
    splice = {"dictionary": "k4", "trained_on": [trained_on], "trained_here": trained}
    comparisons = {}
    for name, arguments in model_args.items():
        records = {"baseline": {"splice": "none"}, "k4": {"splice": "reconstruction", "splices": [splice]}}
        for variant, record in records.items():
            config = {"model_args": arguments, "sae_lm_eval": record}
            write_run(folder / name / variant, answers({"t": np.ones(20)}), config=config)
        comparisons[name] = paired_comparison(folder / name / "baseline", folder / name / "k4")
    return comparisons


@pytest.mark.parametrize(
    ("model_args", "expected"),
    [
        ({"one": {"pretrained": "a/gemma"}, "two": {"pretrained": "b/gemma"}}, {"one"}),
        ({"one": {"pretrained": "c/gemma"}, "two": {"pretrained": "b/gemma"}}, {"one", "two"}),
        ({"one": {"pretrained": "a/gemma", "revision": "step1"}, "two": {"pretrained": "a/gemma"}}, {"two"}),
        ({"one": {"pretrained": "a/gemma", "revision": "step1"}}, {"one"}),
        ({"one": {"pretrained": "a/gemma", "revision": "1"}, "two": {"pretrained": "a/gemma", "revision": "2"}}, set()),
        ({"one": {"pretrained": "a/gemma"}, "two": {"pretrained": "a/gemma", "peft": "./lora"}}, {"one"}),
    ],
)
def test_the_model_that_a_dictionary_was_trained_on_is_the_nearest_of_its_name(tmp_path, model_args, expected):
    comparisons = models_of(tmp_path, "a/gemma", **model_args)
    assert {model for model, own in trained_here(comparisons).items() if own} == expected


def test_a_model_is_no_home_by_the_last_part_of_its_name_alone(tmp_path):
    comparisons = models_of(tmp_path, "a/gemma", trained=False, one={"pretrained": "b/gemma"})
    assert trained_here(comparisons) == {"one": frozenset()}


@pytest.mark.parametrize(
    ("trained_on", "model", "is_its"),
    [
        ("mistral-7b", "mistralai/Mistral-7B-v0.1", True),
        ("tiny-stories-1M", "roneneldan/TinyStories-1M", True),
        ("gelu-2l", "NeelNanda/GELU_2L512W_C4_Code", True),
        ("gpt2-small", "/models/gpt2-small/", True),
        ("gpt2", "mirror/gpt2-small", True),
        ("gemma-2-2b", "google/gemma-2-2b-it", False),
    ],
)
def test_results_say_whether_a_dictionary_was_trained_on_the_model(trained_on, model, is_its):
    untrained, sae = random_model("gpt2"), random_sae(32, "blocks.1.hook_resid_post")
    untrained.config._name_or_path = model
    sae.cfg.metadata.model_name = trained_on
    lm = SaeHFLM(pretrained=untrained, tokenizer=word_tokenizer(), sae=sae)
    (splice,) = lm.spliced.provenance()["splices"]
    assert (splice["trained_on"], splice["trained_here"]) == ([trained_on], is_its)


def test_a_dictionary_of_a_model_with_the_same_last_part_is_a_transfer_beside_its_own(tmp_path):
    random_sae(32, "blocks.1.hook_resid_post", model_name="a/gemma").save_model(tmp_path)
    sweeps = sweeps_of(content(["a/gemma", "b/gemma"], variants=[str(tmp_path)]))
    assert foreign_dictionaries(sweeps) == {"b_gemma": ["a/gemma"]}
    assert foreign_dictionaries(sweeps_of(content(["b/gemma"], variants=[str(tmp_path)]))) == {}


# -- more than at home -----------------------------------------------------------------------------------------


def compared(folder: Path, before: np.ndarray, after: np.ndarray):
    write_run(folder / "baseline", answers({"t": before}))
    write_run(folder / "k4", answers({"t": after}), model="k4")
    return paired_comparison(folder / "baseline", folder / "k4")


def test_how_much_more_a_variant_costs_is_by_question(tmp_path):
    home = compared(tmp_path / "home", np.ones(40), np.r_[np.zeros(4), np.ones(36)])
    away = compared(tmp_path / "away", np.r_[np.ones(30), np.zeros(10)], np.r_[np.zeros(10), np.ones(20), np.zeros(10)])
    name = home.variants[0].name
    estimate, n = gap(home, away, name)
    each = np.r_[np.zeros(4), np.ones(6), np.zeros(30)]
    half = 2.0226909 * each.std(ddof=1) / 40**0.5
    assert n == 40
    assert estimate.value == pytest.approx(100 * each.mean())
    assert (estimate.low, estimate.high) == pytest.approx(
        (100 * (each.mean() - half), 100 * (each.mean() + half)), abs=1e-4
    )
    same, _ = gap(home, home, name)
    assert same.value == 0
    assert np.isnan(same.low)


def test_questions_of_a_passage_belong_together_in_how_much_more_a_variant_costs(tmp_path):
    """Of 20 passages with ten questions each, six are lost whole in one model, and nothing in the other."""
    rng, compared_by = np.random.default_rng(0), {}
    for model, lost in (("home", 0), ("away", 6)):
        for name, wrong in (("baseline", 0), ("k4", lost)):
            samples = [question("t", i, float(i % 20 >= wrong), rng, f"passage {i % 20}") for i in range(200)]
            write_run(tmp_path / model / name, {"t": samples}, model=name)
        compared_by[model] = paired_comparison(
            tmp_path / model / "baseline", tmp_path / model / "k4", docs_by="subject"
        )
    home, away = compared_by.values()
    name = away.variants[0].name
    estimate, n = gap(home, away, name)
    half = 2.0930241 * (0.3 * 0.7 * 20 / 19 / 20) ** 0.5
    assert n == 200
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx(
        (30 - 100 * half, 30, 30 + 100 * half), abs=1e-4
    )
    row = away.drops[away.drops["section"] == "overall"].iloc[0]
    assert (estimate.low, estimate.high) == pytest.approx((row["low"], row["high"]))
    (table,) = gap_table(compared_by, {"home": frozenset([name])}, {name: "k4"})
    assert "with a cluster-robust 95% interval, by subject." in table.caption


def test_a_report_says_which_model_has_no_results_yet(out, tmp_path):
    import shutil

    copied = tmp_path / "copy"
    shutil.copytree(out, copied)
    shutil.rmtree(copied / "earlier")
    report = transfer_report(read_transfer(copied))
    assert "earlier has no results yet: the same command continues." in report.notes
    shutil.rmtree(copied / "world")
    with pytest.raises(UserError, match="None of the models in"):
        read_transfer(copied)
