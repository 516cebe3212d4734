"""A curve measured on one text: its numbers, its file, what is refused, and the runs that it serves."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from runs import answers, curve, write_run
from transformers import AutoModelForCausalLM

from sae_lm_eval import world
from sae_lm_eval.cli.effective_compute import offer_curves
from sae_lm_eval.errors import UserError
from sae_lm_eval.report.text_tables import curve_command
from sae_lm_eval.runs.loss_curve import measure_curve, parameters, task_documents
from sae_lm_eval.runs.members import Member, read_asked
from sae_lm_eval.scaling import effective_compute, read_family
from sae_lm_eval.scaling.loss_curves import CurveRun, curves_for
from sae_lm_eval.scaling.of_results import convert, to_frame

TASKS = Path(__file__).parents[1] / "tasks"
TASK, DOCUMENTS, CONTEXT = "sae_world_text", 12, 32
CHECKPOINTS = [Member("world", "step2616"), Member("world", "step4088"), Member("world")]


@pytest.fixture(scope="module", autouse=True)
def own_tasks_alone():
    """lm_eval's own thousands of tasks take seconds to index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sae_lm_eval.runs.loss_curve.TaskManager",
            lambda **given: TaskManager(include_defaults=False, **{**given, "include_path": str(TASKS)}),
        )
        yield


@pytest.fixture(scope="module")
def text():
    return task_documents(TASK, limit=DOCUMENTS)


@pytest.fixture(scope="module")
def file(text, tmp_path_factory):
    """Of two checkpoints and the model of the world, in windows shorter than its documents."""
    path = tmp_path_factory.mktemp("curve") / "family.csv"
    measure_curve(CHECKPOINTS, text, path, context=CONTEXT)
    return path


def test_losses_are_those_of_lm_evals_own_model(file, text):
    rows = pd.read_csv(file).set_index("revision")
    for checkpoint in ("step2616", None):
        lm = HFLM(str(world.model_path(checkpoint)), device="cpu", max_length=CONTEXT, batch_size=4)
        requests = [Instance("loglikelihood_rolling", {}, (document,), 0) for document in text.documents]
        nats = -sum(lm.loglikelihood_rolling(requests, disable_tqdm=True))
        tokens = sum(len(lm.tok_encode(document)) for document in text.documents)
        row = rows.loc[checkpoint or "main"]
        assert row["text_nats"] == pytest.approx(nats, abs=1e-3)
        assert row["loss"] == pytest.approx(nats / tokens, abs=1e-6)
        assert row["nats_per_byte"] == pytest.approx(nats / sum(len(d.encode()) for d in text.documents), abs=1e-6)


def test_a_row_says_what_was_measured(file):
    row = pd.read_csv(file).iloc[0]
    assert (row["task"], row["documents"], row["context"], row["dtype"]) == (TASK, DOCUMENTS, CONTEXT, "float32")
    own = world.world_facts()["family"][-1]
    assert (row["params"], row["params_non_embedding"]) == (own["parameters"], own["non_embedding_parameters"])
    assert row["tokens"] == 2_889_144


def test_tied_embeddings_and_positions_are_counted_once():
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=5)
    whole, inner = parameters(AutoModelForCausalLM.from_config(config))
    assert whole - inner == 8 * 11 + 8 * 5


def test_the_file_is_a_family_and_a_course_of_checkpoints(file):
    family = read_family(file)
    assert family.models == ("world@step2616", "world@step4088", "world")
    assert family.text == f"{TASK}, {DOCUMENTS} documents, windows of {CONTEXT} tokens"
    result = effective_compute(ce_baseline=family.loss[-1], ce_spliced=family.loss[0], checkpoints=file)
    assert result.preferred.fraction == pytest.approx(2_889_144 / 6_500_208)


def test_what_is_measured_is_not_measured_again(file, text, tmp_path, monkeypatch):
    copy = tmp_path / "family.csv"
    copy.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    loaded = []
    from sae_lm_eval.runs import loss_curve as module

    load = module._load
    monkeypatch.setattr(module, "_load", lambda member, *rest: loaded.append(str(member)) or load(member, *rest))
    measure_curve(CHECKPOINTS, text, copy)
    assert loaded == ["world"]
    assert copy.read_text() == file.read_text()


KILLED = """
import sys
from pathlib import Path
from sae_lm_eval.runs.members import Member
from sae_lm_eval.runs.loss_curve import Text, measure_curve
text = Text("sae_world_text", tuple(sys.stdin.read().splitlines()))
measure_curve([Member.parse(name) for name in sys.argv[2:]], text, Path(sys.argv[1]))
"""


def test_a_killed_process_leaves_what_it_had_measured(tmp_path):
    path, text = tmp_path / "family.csv", task_documents(TASK, limit=200)
    command = [sys.executable, "-c", KILLED, str(path), *map(str, CHECKPOINTS)]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, **quiet) as process:
        assert process.stdin is not None
        process.stdin.write("\n".join(text.documents))
        process.stdin.close()
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    before = pd.read_csv(path)
    assert 1 <= len(before) < 3
    measure_curve(CHECKPOINTS, text, path)
    after = pd.read_csv(path)
    assert list(after["revision"]) == ["step2616", "step4088", "main"]
    pd.testing.assert_frame_equal(after.head(len(before)), before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"models": "world,my/model"},
            "training tokens of my/model are not known: give them, as in --tokens my/model=3e11",
        ),
        ({"models": "EleutherAI/pythia-70m@final"}, "training tokens of EleutherAI/pythia-70m@final are not known"),
        ({"models": "world@step1"}, "The world has no checkpoint 'step1'"),
        ({"models": "world,world"}, "--models has world twice"),
        ({"models": ","}, "--models names no model"),
        ({"models": "world@"}, "'world@' names no model"),
        ({"tokens": "other=1e9"}, "--tokens speaks of 'other'"),
        ({"tokens": "world"}, "write name=count"),
        ({"task": "sae_world_villages"}, "asks multiple_choice; a curve needs the loss of whole documents"),
        ({"task": "sae_world_txt"}, "Did you mean 'sae_world_text'"),
        ({"task": None}, "--task is missing"),
        ({"output_path": None}, "--output_path is missing"),
        ({"output_path": "family"}, "must end in .csv"),
        ({"model_args": "pretrained=gpt2"}, "--model_args has pretrained=, which curve sets by itself"),
        ({"metadata": "{"}, "lm_eval does not take these flags: "),
        ({"metadata": '{"sae_fidelity_text": 5}'}, "--metadata"),
        ({"num_fewshot": 5}, "curve has no flag '--num_fewshot'. 'sae-lm-eval curve --help' lists them."),
        ({"f": 5}, "curve takes of lm_eval's flags only --limit, --batch_size, --device, --metadata, --include_path."),
        ({"limits": 5}, "curve has no flag '--limits'. Did you mean '--limit'?"),
        ({"max_length": 4096}, "max_length=4096 is more than the 128 tokens that world reads"),
        ({"limit": 5, "output_path": "MEASURED"}, "holds losses on another text"),
        ({"max_length": 64, "output_path": "MEASURED"}, "windows of 32 tokens, not 64"),
    ],
)
def test_mistakes_are_told_in_a_sentence(given, message, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"models": "world", "task": TASK, "limit": DOCUMENTS, "output_path": "family.csv"} | given
    arguments["output_path"] = {"MEASURED": file, None: None}.get(
        arguments["output_path"], Path(str(arguments["output_path"]))
    )
    with pytest.raises(UserError) as refusal:
        curve(**arguments)
    assert message in str(refusal.value)
    assert str(refusal.value).count("\n") == 0


def test_tokens_of_pythias_steps_and_of_known_models():
    assert Member("EleutherAI/pythia-70m-deduped", "step1000").training[0] == 1000 * 2_097_152
    assert Member("EleutherAI/pythia-70m").training[0] == 299_892_736_000
    assert Member("EleutherAI/pythia-70m", "step0").training[0] == 0
    assert Member("EleutherAI/pythia-70m", tokens=5.0).training == (5.0, "given by the user")


def test_models_of_a_table_with_their_tokens(tmp_path, text):
    table = tmp_path / "models.csv"
    folder = str(world.model_path("step2616"))
    table.write_text(f"model,tokens\n{folder},1e6\nworld,\n")
    curve(models=str(table), task=TASK, limit=DOCUMENTS, output_path=tmp_path / "family.csv")
    rows = pd.read_csv(tmp_path / "family.csv")
    assert list(rows["tokens"]) == [1e6, 6_500_208]
    assert list(rows["model"]) == [folder, "world"]


REAL = """
import sys
from pathlib import Path
from sae_lm_eval.runs.members import Member
from sae_lm_eval.runs.loss_curve import measure_curve, task_documents
from sae_lm_eval.errors import UserError
text, path = task_documents("wikitext", limit=1), Path(sys.argv[1])
members = [Member("stories260K", tokens=1e9), Member("stories3M", tokens=3e9)]
try:
    measure_curve(members, text, path, context=128, loading={"batch_size": 8})
except UserError as error:
    print(error)
measure_curve(members, text, path, context=128, per="byte", loading={"batch_size": 8})
"""


def test_tokenizers_are_not_mixed_but_per_byte(hub_environment, tmp_path):
    path = tmp_path / "family.csv"
    command = [sys.executable, "-c", REAL, str(path)]
    done = subprocess.run(command, env=hub_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stories3M cuts the text into other tokens" in done.stdout
    rows = pd.read_csv(path)
    length = rows["text_bytes"][0] / rows["text_tokens"][0]
    assert list(rows["loss"]) == pytest.approx(list(rows["nats_per_byte"] * length))
    assert rows["text_tokens"].nunique() == 2
    assert rows["commit"].notna().all()


def fidelity_run(out: Path, baseline: float, spliced: float, **provenance) -> Path:
    """A results folder as a sae_fidelity task leaves it, less what is not read here."""
    scores = {
        "ce_baseline,none": baseline,
        "ce_spliced,none": spliced,
        "ce_delta_stderr,none": 0.01,
        "ce_mean,none": "N/A",
    }
    record = {"splice": "reconstruction", "max_length": CONTEXT, **provenance}
    folder = write_run(
        out / "k4",
        answers({TASK: [1.0]}),
        {TASK: scores},
        model="world",
        config={"sae_lm_eval": record, "limit": float(DOCUMENTS)},
    )
    (written,) = folder.glob("*/results_*.json")
    raw = json.loads(written.read_text())
    raw["n-samples"][TASK] = {"original": 500, "effective": DOCUMENTS}
    raw["configs"][TASK]["output_type"] = "sae_fidelity"
    written.write_text(json.dumps(raw))
    return out


@pytest.fixture(scope="module")
def losses(file):
    return dict(pd.read_csv(file).set_index("revision")["loss"])


def test_results_take_the_curve_beside_them(file, losses, tmp_path):
    out = fidelity_run(tmp_path, losses["main"], losses["step4088"])
    (alone,) = convert(out, original={}, law="besiroglu2024")
    assert alone.result.preferred.curve == "world checkpoints"
    (out / "family.csv").write_text(file.read_text())
    (beside,) = convert(out, original={}, law="besiroglu2024")
    quoted = beside.result.preferred
    assert (quoted.definition, quoted.curve) == ("checkpoints isotonic", "family")
    assert quoted.fraction == pytest.approx(4_514_811 / 6_500_208)
    assert quoted.interval is not None
    assert "documents" in quoted.interval.covers
    frame = to_frame([beside])
    assert list(frame.loc[frame["quoted"], "definition"]) == ["checkpoints isotonic"]
    assert set(frame["variant"]) == {"k4"}


def test_a_model_of_a_known_family_is_offered_the_curve_that_would_settle_it(tmp_path, capsys):
    out = fidelity_run(tmp_path / "my run", 1.97, 2.13)
    (results,) = out.glob("*/*/results_*.json")
    raw = json.loads(results.read_text())
    raw["config"]["model_args"] = {"pretrained": "EleutherAI/pythia-2.8b"}
    results.write_text(json.dumps(raw))
    offer_curves(out)
    offered = capsys.readouterr().err.splitlines()[-1]
    command = shlex.split(offered)
    assert command[:3] == ["sae-lm-eval", "curve", "--models"]
    assert command[3].split(",")[-1] == "EleutherAI/pythia-2.8b"
    assert len(command[3].split(",")) == 6
    assert command[4:] == ["--task", TASK, "--like", str(out)]
    offer_curves(tmp_path)
    fidelity_run(tmp_path / "unknown", 1.97, 2.13)
    offer_curves(tmp_path / "unknown")
    assert capsys.readouterr().err == ""


def test_a_family_too_small_for_a_fit_is_its_own_checkpoints():
    estimate = effective_compute(ce_baseline=2.6, ce_spliced=2.8, model="pythia-160m")
    models = curve_command(estimate).split()[3].split(",")
    assert models[0] == "EleutherAI/pythia-160m@step1000"
    assert models[-1] == "EleutherAI/pythia-160m"
    assert len(models) == 7


def test_a_measured_bound_comes_before_a_borrowed_law(file, losses, tmp_path):
    out = fidelity_run(tmp_path, losses["main"], losses["step2616"] + 0.5)
    (out / "family.csv").write_text(file.read_text())
    (estimate,) = convert(out, original={}, law="besiroglu2024")
    assert (estimate.result.preferred.fraction, estimate.result.preferred.bound) == (None, "< 0.444")


def test_a_curve_of_something_else_is_not_taken(file, losses, tmp_path):
    run = CurveRun(TASK, DOCUMENTS, CONTEXT, "world", "main", losses["main"])
    assert curves_for(run, [file]).checkpoints is not None
    for other in ({"task": "wikitext"}, {"documents": 13}, {"context": 64}):
        assert curves_for(CurveRun(**{**vars(run), **other}), [file]).own is None
    assert "without gpt2" in curves_for(CurveRun(**{**vars(run), "model": "gpt2"}), [file]).notes[0]
    alone = file.with_name("alone.csv")
    pd.read_csv(file).query("model == @run.model and revision == @run.revision").to_csv(alone, index=False)
    assert "alone, and one model is no curve" in curves_for(run, [alone]).notes[0]
    assert curves_for(run, [alone, file]).checkpoints is not None
    rising = pd.read_csv(file)
    rising["text_nats"] = rising["text_tokens"] * (losses["main"] + (rising["tokens"].rank() - len(rising)) / 100)
    rising["nats_per_byte"] = rising["text_nats"] / rising["text_bytes"]
    rising.to_csv(file.with_name("rising.csv"), index=False)
    note = curves_for(run, [file.with_name("rising.csv")]).notes[0]
    assert note.endswith("is not used: it has no two models or checkpoints whose losses fall with compute")
    assert "it is not used" in curves_for(CurveRun(**{**vars(run), "baseline": 2 * losses["main"]}), [file]).notes[0]


def with_row(file, target, like, **changed):
    """The curve with a row more, as that of revision `like` but for what is changed."""
    rows = pd.read_csv(file)
    row = rows[rows["revision"] == like].assign(**changed)
    row["text_nats"] = row["loss"] * row["text_tokens"]
    row["nats_per_byte"] = row["text_nats"] / row["text_bytes"]
    pd.concat([rows, row]).to_csv(target, index=False)
    return target


def test_a_curve_whose_rows_do_not_differ_in_compute_stops_nothing(file, losses):
    """An untrained checkpoint and the model itself are one point of a course."""
    run = CurveRun(TASK, DOCUMENTS, CONTEXT, "world", "main", losses["main"])
    untrained = file.with_name("untrained.csv")
    rows = pd.read_csv(file)
    rows["tokens"] = rows["tokens"].where(rows["revision"] == "main", 0)
    rows.to_csv(untrained, index=False)
    (note,) = curves_for(run, [untrained]).notes
    assert note.endswith("it has no two models or checkpoints whose losses fall with compute")
    small = {"model": "small", "loss": 2 * losses["main"], "params": 1000, "revision": "main"}
    curves = curves_for(run, [with_row(untrained, file.with_name("both.csv"), "main", **small)])
    assert curves.checkpoints is None
    assert curves.family.models == ("small", "world")
    (note,) = curves.notes
    assert note.startswith("the checkpoints curve of ")
    assert "is not used: a curve needs two rows or more that differ in FLOPs" in note


def test_a_curve_that_is_left_out_beside_another_has_a_note(file, losses):
    run = CurveRun(TASK, DOCUMENTS, CONTEXT, "world", "main", losses["main"])
    worse = {"model": "larger", "loss": 2 * losses["main"], "params": 10**9, "tokens": 10**9, "revision": "main"}
    curves = curves_for(run, [with_row(file, file.with_name("worse.csv"), "main", **worse)])
    assert curves.checkpoints is not None
    assert curves.family is None
    (note,) = curves.notes
    assert note.startswith("the family curve of ")
    assert "is not used: the measured losses do not fall with compute" in note


def test_a_category_whose_losses_rise_has_no_curve_but_a_note(file, losses):
    run = CurveRun(TASK, DOCUMENTS, CONTEXT, "world", "main", losses["main"])
    rows = pd.read_csv(file).sort_values("tokens")
    parts = {"good": [300.0, 200.0, 100.0], "bad": [100.0, 200.0, 300.0]}
    rows["categories"] = [
        json.dumps({name: {"nats": nats[at], "tokens": 99, "bytes": 300} for name, nats in parts.items()})
        for at in range(len(rows))
    ]
    rows.to_csv(file.with_name("categories.csv"), index=False)
    curves = curves_for(run, [file.with_name("categories.csv")])
    assert list(curves.by_category) == ["good"]
    (note,) = curves.notes
    assert note.endswith("curves of bad that do not fall with compute are not used")


VILLAGES = {"documents": 3, "tokens": 9, "ce_baseline": 1.0, "ce_spliced": 1.3, "ce_delta_stderr": 0.1}


def test_a_category_is_not_converted_by_another_curve_than_its_text(file, losses, tmp_path):
    record = {TASK: {"by_category": {"villages": VILLAGES}}}
    out = fidelity_run(tmp_path, losses["main"], losses["step4088"], fidelity=record)
    (out / "family.csv").write_text(file.read_text())
    whole, category = convert(out, original={}, law="besiroglu2024")
    assert (whole.category, category.category) == (None, "villages")
    quoted = category.result.preferred
    assert (quoted.definition, quoted.curve) == ("checkpoints isotonic", whole.result.preferred.curve)
    assert (quoted.fraction, quoted.bound) == (None, None)
    assert "has no losses of this category" in quoted.reason


def test_a_category_is_converted_by_the_law_where_its_text_is(tmp_path):
    record = {TASK: {"by_category": {"villages": VILLAGES}}}
    out = fidelity_run(tmp_path, 3.0, 3.2, fidelity=record)
    whole, category = convert(out, original={"params": 1e9, "tokens": 2e10}, law="besiroglu2024")
    assert whole.result.preferred.definition == category.result.preferred.definition == "law, calibrated"
    alone = effective_compute(ce_baseline=1.0, ce_spliced=1.3, params=1e9, tokens=2e10)
    assert category.result.preferred.fraction == pytest.approx(alone.preferred.fraction)
    assert category.result.within_the_law.fraction == pytest.approx(alone.within_the_law.fraction)
    assert "documents" in category.result.within_the_law.interval.covers


def test_a_category_is_converted_by_its_own_losses_where_the_curve_has_them(text, losses, tmp_path):
    """The documents of two categories, measured apart: the whole is their sum, and each has its own curve."""
    kinds = tuple("ab"[at % 2] for at in range(DOCUMENTS))
    path = tmp_path / "family.csv"
    rows = measure_curve(CHECKPOINTS, dataclasses.replace(text, categories=kinds), path, context=CONTEXT)
    parts = [json.loads(row["categories"]) for row in rows]
    for row, sums in zip(rows, parts, strict=True):
        assert sum(part["nats"] for part in sums.values()) == pytest.approx(row["text_nats"])
        assert row["loss"] == pytest.approx(losses[row["revision"]], rel=1e-5)
    loss = {row["revision"]: sums["a"]["nats"] / sums["a"]["tokens"] for row, sums in zip(rows, parts, strict=True)}
    a = {"documents": 6, "tokens": 90, "ce_baseline": loss["main"], "ce_spliced": loss["step2616"] - 1e-9}
    out = fidelity_run(tmp_path, losses["main"], losses["step4088"], fidelity={TASK: {"by_category": {"a": a}}})
    whole, category = convert(out, original={}, law="besiroglu2024")
    assert whole.result.preferred.fraction == pytest.approx(4_514_811 / 6_500_208)
    assert category.result.preferred.definition == "checkpoints isotonic"
    assert category.result.preferred.fraction == pytest.approx(2_889_144 / 6_500_208, rel=1e-3)


def test_the_command_and_the_report_say_the_same_of_one_folder(file, losses, tmp_path):
    from sae_lm_eval.report.fidelity_tables import fidelity_of
    from sae_lm_eval.results.results import read_results

    end = world.world_facts()["family"][-1]["loss"]
    recorded = {TASK: {"fraction": 0.9, "law": "besiroglu2024", "definition": "within the law", "flags": []}}
    for name, ends in (("beside", (losses["main"], losses["step4088"])), ("world", (end, end + 0.0842))):
        out = fidelity_run(tmp_path / name, *ends, effective_compute=recorded)
        if name == "beside":
            (out / "family.csv").write_text(file.read_text())
        (by_command,) = convert(out, original={}, law="besiroglu2024")
        (metrics,) = fidelity_of([read_results(out / "k4")]).values()
        reported, quoted = metrics["effective_compute"], by_command.result.preferred
        assert quoted.definition == "checkpoints isotonic"
        assert reported.law == quoted.curve
        assert (reported.value, reported.low, reported.high) == (
            quoted.fraction, quoted.interval.low, quoted.interval.high
        )  # fmt: skip
        (alone,) = convert(out / "k4", original={}, law="besiroglu2024")
        assert alone.result.preferred == quoted


def test_like_takes_text_and_context_of_a_run(losses, file, tmp_path):
    out = fidelity_run(tmp_path, losses["main"], losses["step4088"])
    curve(models="world@step4088", like=out)
    rows = pd.read_csv(out / f"family_{TASK}.csv")
    assert list(rows["text_hash"]) == [pd.read_csv(file)["text_hash"][0]]
    assert list(rows["context"]) == [CONTEXT]
    with pytest.raises(UserError, match=r"--limit is 7, and .* was run with 12"):
        curve(models="world", like=out, limit=7)


def test_a_record_whose_revision_is_all_digits(tmp_path):
    """`revision=1234567` of a command line is read as a number."""
    record = tmp_path / "run.json"
    record.write_text('{"model_args": {"pretrained": "gpt2", "revision": 1234567}}')
    assert read_asked(tmp_path)["model_args"]["revision"] == "1234567"
    record.write_text('{"model_args": {"pretrained": "gpt2", "revision": true}}')
    with pytest.raises(UserError, match="revision' is True"):
        read_asked(tmp_path)


def test_results_without_a_spliced_loss_are_refused(tmp_path):
    write_run(tmp_path / "a", answers({"blimp": [1.0]}))
    with pytest.raises(UserError, match="have no ce_baseline and ce_spliced"):
        convert(tmp_path, original={})


def test_the_report_takes_the_curve_beside_the_results(file, losses, tmp_path):
    from sae_lm_eval.report.fidelity_tables import fidelity_of
    from sae_lm_eval.results.results import read_results

    out = fidelity_run(tmp_path, losses["main"], losses["step4088"])

    def compute():
        (metrics,) = fidelity_of([read_results(out / "k4")]).values()
        return metrics["effective_compute"]

    assert compute().law == "world checkpoints"
    (out / "family.csv").write_text(file.read_text())
    value = compute()
    assert value.law == "family"
    assert value.value == pytest.approx(4_514_811 / 6_500_208)
    assert value.low is not None


def test_a_hint_for_authors_of_tasks_is_left_out(caplog):
    with pytest.raises(UserError, match="The task 'sae_world_homes' asks multiple_choice"):
        task_documents("sae_world_homes")
    assert "Custom kwargs" not in caplog.text
