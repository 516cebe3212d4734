"""Logs of Inspect's, compared sample by sample and epoch by epoch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

inspect_ai = pytest.importorskip(
    "inspect_ai", reason="NOT TESTED: Inspect is not installed here; `make test-frameworks` installs it"
)

from inspect_ai import Epochs, Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, accuracy, mean, scorer, stderr
from inspect_ai.solver import generate
from scipy.stats import binomtest
from test_inspect import colours, run, saying

import sae_lm_eval
from sae_lm_eval.errors import UserError
from sae_lm_eval.results.inspect_logs import read_inspect_log

COUNT = 24


@scorer(metrics=[accuracy(), stderr()])
def said():
    """The answer is the score: C, I, P or N, a number, or "nan"."""

    async def score(state, target):
        text = state.output.completion
        return Score(value=text if text in "CIPN" else float(text), answer=text)

    return score


@scorer(metrics=[mean()])
def length():
    async def score(state, target):
        return Score(value=len(state.output.completion) / 4)

    return score


@scorer(metrics={"right": [accuracy()], "marks": [mean()]})
def several():
    async def score(state, target):
        return Score(value={"right": state.output.completion == "C", "marks": 7})

    return score


def task(count: int = COUNT, epochs: Epochs | int | None = None, scorers=None, **settings) -> Task:
    topics = ("north", "south")
    samples = [
        Sample(f"question {i}", target="C", id=f"q{i}", metadata={"topic": topics[i % 2], "passage": i // 4})
        for i in range(count)
    ]
    data = MemoryDataset(samples, name=settings.pop("data", "questions"))
    return Task(
        dataset=data, solver=generate(), scorer=scorers or said(), epochs=epochs, **{"name": "quiz", **settings}
    )


def log_of(answers, tmp_path: Path, name: str, inspect_task: Task | None = None, **settings) -> Path:
    """The log of a model that gives these answers in turn."""
    inspect_task = inspect_task or task(len(answers))
    model = saying(answers)
    settings = {"max_samples": 1, "display": "none", "log_level": "error", **settings}
    (log,) = evaluate(inspect_task, model=model, log_dir=str(tmp_path / name), **settings)
    file = Path(log.location.removeprefix("file://"))
    return file.rename(tmp_path / f"{name}.eval")


BEFORE = list("CCCCCCCCCCCCCCCCCCCCIIII")
AFTER = list("IIIIIIICCCCCCCCCCCCCCIII")


@pytest.fixture
def logs(tmp_path):
    return log_of(BEFORE, tmp_path, "before"), log_of(AFTER, tmp_path, "after")


def only(comparison, **chosen):
    drops = comparison.drops
    for name, value in chosen.items():
        drops = drops[drops[name] == value]
    (row,) = drops.to_dict("records")
    return row


def test_samples_are_paired_by_their_id(logs):
    comparison = sae_lm_eval.compare(*logs)
    row = only(comparison, section="task")
    assert (row["n"], row["lost"], row["gained"]) == (24, 7, 1)
    assert row["baseline"] == pytest.approx(20 / 24)
    assert row["drop"] == pytest.approx(100 * 6 / 24)
    assert row["unit"] == "pp"
    assert row["p"] == pytest.approx(binomtest(1, 8).pvalue, abs=0.05)
    assert row["low"] < row["drop"] < row["high"]
    assert (row["metric"], row["kind"]) == ("said", "accuracy")


def test_their_order_in_the_log_does_not_matter(logs, tmp_path):
    inspect_task = task()
    inspect_task.dataset.samples.reverse()
    reversed_log = log_of(AFTER[::-1], tmp_path, "reversed", inspect_task)
    drops, other_drops = (sae_lm_eval.compare(logs[0], after).drops for after in (logs[1], reversed_log))
    for name in ("baseline", "score", "drop", "low", "high", "p"):
        assert drops[name].tolist() == other_drops[name].tolist()


def test_categories_are_fields_of_the_metadata(logs):
    comparison = sae_lm_eval.compare(*logs, categories={"topic": {"field": "topic"}})
    lost = {row["alias"]: row["lost"] for row in comparison.drops.to_dict("records") if row["section"] == "category"}
    assert lost == {"north": 4, "south": 3}
    clustered = sae_lm_eval.compare(*logs, docs_by="passage")
    assert "passage" in only(clustered, section="task")["interval"]


def test_values_are_numbers_as_inspect_maps_them(tmp_path):
    given = ["C", "I", "P", "N", "0.25", "2"]
    expected = [1, 0, 0.5, 0, 0.25, 2]
    first, second = log_of(given, tmp_path, "first"), log_of(given[::-1], tmp_path, "second")
    results = read_inspect_log(first)
    assert results.samples("quiz")["said"].tolist() == expected
    assert results.scores["quiz"]["said,none"] == pytest.approx(np.mean(expected))
    row = only(sae_lm_eval.compare(first, second), section="task")
    assert (row["kind"], row["unit"], row["drop"]) == ("continuous", "said", pytest.approx(0))
    assert row["baseline"] == pytest.approx(np.mean(expected))


class TestEpochs:
    @pytest.fixture
    def epochs(self, tmp_path):
        """Twelve questions three times, of which the variant loses four each time."""
        before = list("CCCCCCCCCCII") * 3
        after = [*"IIIICCCCCCII", *"IIIICCCCCCII", *"IIIICCCCCCIC"]
        return [
            log_of(answers, tmp_path, name, task(12, 3)) for answers, name in ((before, "before"), (after, "after"))
        ]

    def test_epochs_are_paired_and_samples_are_what_is_independent(self, epochs):
        row = only(sae_lm_eval.compare(*epochs), section="task")
        assert (row["n"], row["lost"], row["gained"]) == (36, 12, 1)
        assert "sample_id" in row["interval"]
        alone = only(sae_lm_eval.compare(*epochs, docs_by="epoch"), section="task")
        assert "epoch" in alone["interval"]

    def test_another_number_of_epochs_is_told(self, epochs, tmp_path):
        fewer = log_of(["C"] * 24, tmp_path, "fewer", task(12, 2))
        with pytest.raises(UserError, match="lacks 12 of 36 samples, the first of them 'q0' in epoch 3"):
            sae_lm_eval.compare(epochs[0], fewer)

    def test_a_number_that_epochs_do_not_average_to_is_left_out(self, tmp_path):
        answers = list("CICIIICC")
        logs = [log_of(answers, tmp_path, name, task(4, Epochs(2, "max"))) for name in "ab"]
        row = only(sae_lm_eval.compare(*logs), section="task")
        assert row["baseline"] == pytest.approx(0.5)


def test_several_scorers_are_several_metrics(tmp_path):
    logs = [
        log_of(answers, tmp_path, name, task(scorers=[said(), length(), several()]))
        for answers, name in ((BEFORE, "before"), (AFTER, "after"))
    ]
    drops = sae_lm_eval.compare(*logs, metrics="all").drops
    rows = drops[drops["section"] == "task"].set_index("metric")
    assert set(rows.index) == {"said", "length", "several.right", "several.marks"}
    assert rows.loc["several.right", "lost"] == 7
    assert rows.loc["several.marks", "baseline"] == 7
    assert rows.loc["length", "baseline"] == 0.25
    assert rows["primary"].sum() == 1


def test_samples_that_were_not_scored_in_every_log_are_left_out_and_told(tmp_path):
    after = [*AFTER]
    after[0] = after[20] = "nan"
    logs = log_of(BEFORE, tmp_path, "before"), log_of(after, tmp_path, "after")
    comparison = sae_lm_eval.compare(*logs)
    row = only(comparison, section="task")
    assert (row["n"], row["lost"], row["gained"]) == (22, 6, 0)
    assert row["baseline"] == pytest.approx(19 / 22)
    (note,) = [note for note in comparison.notes if "left out" in note]
    assert note.startswith("quiz: 2 of 24 answers are left out of said, which did not score them in every log (2 in ")


def test_samples_that_no_log_scored_are_told(tmp_path):
    before, after = [*BEFORE], [*AFTER]
    before[0] = after[0] = "nan"
    logs = log_of(before, tmp_path, "before"), log_of(after, tmp_path, "after")
    comparison = sae_lm_eval.compare(*logs)
    assert only(comparison, section="task")["n"] == 23
    (note,) = [note for note in comparison.notes if "left out" in note]
    assert note.startswith("quiz: 1 of 24 answers are left out of said, which did not score them in every log (1 in ")


@scorer(metrics=[accuracy()])
def words():
    """Words of its own."""

    async def score(state, target):
        return Score(value="good" if state.output.completion == "C" else "bad")

    return score


@scorer(metrics=[accuracy()])
def truths():
    async def score(state, target):
        return Score(value="Yes" if state.output.completion == "C" else "false")

    return score


def test_a_scorer_with_words_of_its_own_is_left_out_and_told(tmp_path):
    logs = [
        log_of(answers, tmp_path, name, task(scorers=[words(), truths()]))
        for answers, name in ((BEFORE, "before"), (AFTER, "after"))
    ]
    comparison = sae_lm_eval.compare(*logs, metrics="all")
    assert only(comparison, section="task")["metric"] == "truths"
    assert only(comparison, section="task")["lost"] == 7
    notes = [note for note in comparison.notes if "words is left out" in note]
    assert len(notes) == 2
    assert notes[0].endswith("since it gives 'good', which is neither a number nor C, I, P, N.")
    with pytest.raises(UserError, match=r"has no scores by sample: .* to each; words gives 'good'\."):
        read_inspect_log(log_of(BEFORE, tmp_path, "alone", task(scorers=words())))


# -- what does not pair -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"name": "exam"}, "are logs of different tasks: quiz and exam."),
        ({"data": "others"}, "differ in the data set of quiz: questions and others."),
        ({"version": 3}, "differ in the version of quiz: 0 and 3."),
        ({"count": 20}, "lacks 4 of 24 samples, the first of them 'q20' in epoch 1: evaluate both on the same"),
    ],
)
def test_logs_of_other_questions(logs, tmp_path, other, sentence):
    count = other.get("count", COUNT)
    third = log_of(BEFORE[:count], tmp_path, "third", task(**{"count": count, **other}))
    with pytest.raises(UserError) as error:
        sae_lm_eval.compare(logs[0], third)
    assert sentence in str(error.value)


def test_a_question_of_another_text(logs, tmp_path):
    inspect_task = task()
    inspect_task.dataset.samples[3].input = "something else"
    with pytest.raises(UserError, match="is another document"):
        sae_lm_eval.compare(logs[0], log_of(BEFORE, tmp_path, "third", inspect_task))


def test_other_settings_are_told(logs, tmp_path):
    inspect_task = task(config=GenerateConfig(temperature=0.5, max_tokens=9))
    comparison = sae_lm_eval.compare(logs[0], log_of(AFTER, tmp_path, "third", inspect_task))
    (note,) = [note for note in comparison.notes if "other settings" in note]
    assert "max_tokens not set and 9; temperature not set and 0.5." in note


def test_chosen_samples_are_told(tmp_path):
    logs = [
        log_of(answers[4:12], tmp_path, name, task(), limit=(4, 12))
        for answers, name in ((BEFORE, "before"), (AFTER, "after"))
    ]
    comparison = sae_lm_eval.compare(*logs)
    assert only(comparison, section="task")["n"] == 8
    assert sum("holds 8 of the 24 samples of its data set." in note for note in comparison.notes) == 2


class TestDamage:
    @pytest.fixture
    def log(self, tmp_path):
        return log_of(BEFORE, tmp_path, "log")

    @pytest.mark.parametrize("size", [0, 10, 400, 3000])
    def test_a_log_that_is_cut_short(self, log, size):
        log.write_bytes(log.read_bytes()[:size])
        with pytest.raises(UserError, match="cannot be read as a log of Inspect, and may be cut short or damaged"):
            read_inspect_log(log)

    def test_a_log_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match=r"There is no '.*missing\.eval'"):
            read_inspect_log(tmp_path / "missing.eval")

    def test_a_log_without_samples(self, tmp_path):
        log = log_of(BEFORE, tmp_path, "log", log_samples=False)
        with pytest.raises(UserError, match="holds no samples: evaluate again without --no-log-samples"):
            read_inspect_log(log)

    def test_a_log_without_scores(self, tmp_path):
        log = log_of(BEFORE, tmp_path, "log", score=False)
        with pytest.raises(UserError, match="has no scores by sample"):
            read_inspect_log(log)

    def test_an_evaluation_that_did_not_finish(self, tmp_path):
        inspect_task = task(4)
        inspect_task.dataset.samples[2].input = "question that fails"

        @inspect_ai.solver.solver
        def failing():
            async def solve(state, generate):
                if "fails" in state.input_text:
                    raise RuntimeError("failed")
                return await generate(state)

            return solve

        inspect_task.solver = failing()
        log = log_of(BEFORE[:4], tmp_path, "log", inspect_task)
        with pytest.raises(UserError, match=r"did not finish \(its status is 'error'\): .*inspect eval-retry"):
            read_inspect_log(log)


# -- the command ------------------------------------------------------------------------------------------------


def test_the_command_compares_what_the_provider_wrote(letters, tmp_path):
    folder, dictionaries = letters
    files = []
    for name, own in {"none": {"splice": "none"}, "green": {"sae": str(dictionaries["green"])}}.items():
        log = run(colours(40), f"sae_hf/{folder}", tmp_path / name, model_args=own)
        files.append(Path(log.location.removeprefix("file://")).rename(tmp_path / f"{name}.eval"))
    command = [sys.executable, "-m", "sae_lm_eval", "compare", *map(str, files), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "colours" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "blocks.0.hook_resid_post" in page
    assert "inspect eval" in page
    assert "inspect_ai" in page or "Inspect" in page
    row = only(sae_lm_eval.compare(*files), section="task")
    assert (row["lost"], row["gained"]) == (10, 0)
    assert row["chance"] == pytest.approx(0.25)
    assert row["above_chance_lost"] == pytest.approx((10 / 40) / (35 / 40 - 0.25))
    swapped = subprocess.run([*command[:4], *map(str, files[::-1])], capture_output=True, text=True)
    assert swapped.returncode != 0
    assert "The baseline comes first" in swapped.stderr
    assert "Traceback" not in swapped.stderr
