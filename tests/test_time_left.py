"""The time that a run will still take, by a clock of the test's own; and what is said of it."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from sae_lm_eval.harness.cut_prompts import tell_of_context
from sae_lm_eval.runs.outcome import Finished, Outcome, summary
from sae_lm_eval.runs.turns import kinds_of, turns
from sae_lm_eval.runtime import progress
from sae_lm_eval.runtime.progress import ConsoleProgress, quiet
from sae_lm_eval.runtime.time_left import DOCUMENTS, OTHER, REQUESTS, TEXTS, TimeLeft


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def left(clock) -> TimeLeft:
    left = TimeLeft(clock)
    left.schedule(turns([["baseline", "a", "b"], ["c"]], []), [DOCUMENTS, REQUESTS])
    return left


def turn(left: TimeLeft, clock: Clock, name: str, requests: float, documents: float, other: float) -> None:
    left.begin_turn(name)
    for kind, seconds in ((REQUESTS, requests), (DOCUMENTS, documents)):
        left.begin(kind)
        clock.tick(seconds)
        left.end()
    clock.tick(other)
    left.end_turn()


def test_at_first_the_documents_are_not_known_of(left, clock):
    left.begin_turn("baseline")
    left.begin(REQUESTS)
    clock.tick(10)
    assert left.seconds(0.25) == (30, False)


def test_the_baselines_documents_tell_of_those_of_variants(left, clock):
    left.begin_turn("baseline")
    left.begin(REQUESTS)
    clock.tick(40)
    left.begin(DOCUMENTS)
    clock.tick(5)
    left.end()
    # a, b and c: three passes each where the baseline had one; and c's requests, in a pass of their own
    assert left.seconds(1) == (3 * 3 * 5 + 40, True)


def test_turns_tell_of_turns_of_their_sort(left, clock):
    turn(left, clock, "baseline", 40, 5, 2)
    turn(left, clock, "a", 0, 20, 3)
    assert left.seconds(1) == ((0 + 20 + 3) + (40 + 20 + 2), True)
    left.begin_turn("b")
    left.begin(DOCUMENTS)
    clock.tick(5)
    assert left.seconds(0.5) == (5 + 3 + (40 + 20 + 2), True)
    assert left.seconds(0.5, of_pass=7) == (7 + 3 + (40 + 20 + 2), True)
    left.end_turn()
    turn(left, clock, "c", 40, 20, 2)
    assert left.seconds(1) == (0, True)


def test_what_a_turn_does_besides_counts_down(left, clock):
    turn(left, clock, "baseline", 1, 1, 10)
    left.begin_turn("a")
    for kind in (REQUESTS, DOCUMENTS):
        left.begin(kind)
        left.end()
    before, _ = left.seconds(1)
    clock.tick(4)
    assert left.seconds(1)[0] == pytest.approx(before - 4)
    clock.tick(60)
    assert left.seconds(1)[0] == pytest.approx(before - 10)


def test_a_turn_that_is_not_scheduled(left, clock):
    turn(left, clock, "another", 1, 1, 1)
    assert left.seconds(1) == (0, False)


def test_the_baseline_once_more_has_requests_of_its_own(clock):
    left = TimeLeft(clock)
    left.schedule(turns([["baseline"]], ["baseline_again"]), [REQUESTS])
    turn(left, clock, "baseline", 8, 0, 1)
    assert left.seconds(1) == (9, True)
    assert OTHER not in kinds_of([])


def test_the_kinds_of_tasks():
    class Task:
        def __init__(self, output_type: str) -> None:
            self.OUTPUT_TYPE = output_type

    output_types = ["multiple_choice", "loglikelihood", "generate_until", "sae_fidelity"]
    assert kinds_of(map(Task, output_types)) == [DOCUMENTS, REQUESTS, TEXTS]


def shown_on(file: io.StringIO) -> ConsoleProgress:
    return ConsoleProgress(Console(file=file, width=200), variants=2)


def test_texts_are_told_by_their_tokens():
    shown = shown_on(io.StringIO())
    shown.begin([5, 5, 5, 5], ["t"] * 4, TEXTS)
    shown.wrote(1200)
    shown.answered(0)
    line = shown.numbers()
    assert line.startswith("1/4 texts, 0/1 tasks, 1,200 tokens written, ")
    assert shown.rate is None  # prompts of texts are no measure of how fast prompts are scored


def test_what_comes_behind_the_last_answer():
    shown = shown_on(io.StringIO())
    shown.time_left.schedule(turns([["baseline", "a"]], []), [DOCUMENTS])
    shown.turn("", "baseline")
    shown.documents(4)
    shown.scored(4)
    assert shown.numbers().startswith("metrics and files")


def test_a_line_a_minute_even_where_nothing_moves(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.2)
    file = io.StringIO()
    with shown_on(file) as shown:
        shown.at("loading the model")
        time.sleep(0.7)
    lines = file.getvalue().splitlines()
    assert set(lines) == {"0 of 2 done; loading the model"}
    assert 2 <= len(lines) <= 4


def test_a_warning_comes_once(tmp_path):
    import logging

    log = logging.getLogger("lm_eval.sae_lm_eval.anything")
    with quiet(tmp_path / "log") as console:
        console.file = file = io.StringIO()
        for _ in range(3):
            log.warning("57 are longer.")
        log.warning("Another.")
    assert file.getvalue().splitlines() == ["57 are longer.", "Another."]


def test_prompts_longer_than_a_context_are_told_once_and_name_the_variant(caplog):
    import logging
    from types import SimpleNamespace

    from sae_lm_eval.scoring.loaded_model import LoadedModel

    said: set[str] = set()
    loaded = SimpleNamespace(_said=said)
    loaded.has_said = lambda key: LoadedModel.has_said(loaded, key)  # pyright: ignore[reportArgumentType]
    loaded.say_once = lambda key, words: LoadedModel.say_once(loaded, key, words)  # pyright: ignore[reportArgumentType]
    group = SimpleNamespace(members=[])
    for name, trained in (("baseline", None), ("k4", 128), ("k32", 128), ("wide", 64)):
        group.members.append(SimpleNamespace(name=name, trained_context=trained, loaded=loaded, group=group))
    logging.getLogger("lm_eval").propagate = True
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        for member in (*group.members, *group.members):
            tell_of_context(member, [100, 200, 300, 20])
    assert [record.message for record in caplog.records] == [
        "2 of 4 prompts (50%) are longer than the 128 tokens that the dictionary of k4 and of 1 other variant was "
        "trained on.",
        "3 of 4 prompts (75%) are longer than the 64 tokens that the dictionary of wide was trained on.",
    ]


def test_the_summary_tells_shared_answers_from_kept_ones(tmp_path):
    outcomes = (Outcome("baseline", tmp_path), Outcome("a", tmp_path))
    line = summary(Finished(outcomes, 1600, 800, 2500.4), 75)
    assert line == (
        "2 of 2 models done (the baseline and 1 variant) in 1:15: 1,600 answers, 800 of them from shared passes; "
        "2,500 tokens a second."
    )
    continued = summary(Finished(outcomes, 1600, 1200, None, continued=True), 75)
    assert continued.endswith("1,200 of them from shared passes or kept by an earlier run.")
