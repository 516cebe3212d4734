"""What `--plan` estimates the time by, and what it reads of dictionaries on the hub."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from sae_lm_eval.runs import plan
from sae_lm_eval.runs.model_pool import LoadedSweep
from sae_lm_eval.runs.pace import NEIGHBOURS, evenly_spaced, extrapolated, seconds_of_baseline
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.runtime.time_left import DOCUMENTS, REQUESTS, TEXTS

K4, K32 = "world#blocks.2.hook_resid_post.k4", "world#blocks.2.hook_resid_post.k32"


@dataclass(frozen=True)
class Request:
    args: tuple[object, ...]


@pytest.mark.parametrize("count", [1, 15, 16, 100, 5000])
def test_the_rate_of_a_part_is_that_of_the_whole(count):
    """Where each letter takes a millisecond, and the first part, which warms up, a second more."""
    now, parts = [0.0], []
    requests = [Request(("x" * (1 + number % 7), "y", {"until": 3})) for number in range(count)]

    def answer(some: list[Request]) -> None:
        parts.append(len(some))
        now[0] += sum(len(str(part)) for request in some for part in request.args[:2]) / 1000

    whole = sum(len(str(part)) for request in requests for part in request.args[:2]) / 1000
    assert extrapolated(requests, answer, 4, lambda: now[0]) == pytest.approx(whole, rel=0.02)
    assert now[0] <= max(4, parts[0])
    assert parts == sorted(set(parts))


def test_one_part_is_run_where_it_takes_longer_than_there_is():
    now = [0.0]

    def answer(some: list[Request]) -> None:
        now[0] += 60

    requests = [Request(("x",))] * 160
    assert extrapolated(requests, answer, 10, lambda: now[0]) == pytest.approx(600)
    assert now[0] == 60


def test_a_part_is_spread_over_all_in_stretches():
    spread = evenly_spaced(list(range(1000)), 4 * NEIGHBOURS)
    assert spread[:NEIGHBOURS] == list(range(NEIGHBOURS))
    assert [spread[i * NEIGHBOURS] for i in range(4)] == [0, 250, 500, 750]
    assert evenly_spaced([1, 2], 16) == [1, 2]


@pytest.fixture(scope="module")
def sweep():
    variants = [{"sae": K4, "name": "k4"}, {"sae": K32, "name": "k32"}]
    settings = {"model_args": {"pretrained": "world"}, "variants": variants, "limit": 4, "device": "cpu"}
    return sweep_of({**settings, "tasks": ["sae_world_homes", "sae_fidelity_world"]})


def test_each_kind_of_a_run_is_timed(sweep):
    by_kind = seconds_of_baseline(LoadedSweep(sweep, lm_eval_config(sweep)), seconds=0.5)
    assert by_kind.keys() == {REQUESTS, DOCUMENTS}
    assert all(seconds > 0 for seconds in by_kind.values())


def test_the_time_of_a_plan(sweep):
    sweep_plan = plan.plan_sweep(sweep, None)
    assert plan.time_sentence(sweep_plan) == "Time: not estimated, since nothing has been measured yet."
    # 1 + 2 * 0.25 passes of requests, three texts, and one and two threefold passes of documents
    measured = {REQUESTS: 100.0, TEXTS: 10.0, DOCUMENTS: 20.0}
    seconds = 150 + 30 + 140
    said = f"Time: about {seconds // 60}:{seconds % 60:02} for what is left, by a part of it that was run just now."
    assert plan.time_sentence(sweep_plan, measured) == said
    finished = replace(sweep_plan, finished=frozenset({"baseline", "k4", "k32"}))
    assert plan.time_sentence(finished, measured) == "Time: nothing is left to run."


def test_a_plan_of_dictionaries_on_the_hub_leaves_nothing_unknown(hub_environment, tmp_path):
    sae = "stories/sae-stories3M#blocks.2.hook_resid_post"
    arguments = (
        f"--model_args pretrained=stories3M --tasks sae_world_homes --limit 2 --sae {sae}.topk8 --sae {sae}.topk32"
    )
    command = [sys.executable, "-m", "sae_lm_eval", "run", "--plan", *arguments.split(), "--control", "zero"]
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        command, env={**hub_environment, "HF_HOME": str(home)}, capture_output=True, text=True, cwd=here
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert [row[0].rsplit(".", 1)[-1] for row in rows[1:]] == ["topk8", "topk32", "topk8,zero"]
    assert {(row[2], row[3], row[4]) for row in rows[1:]} == {("blocks.2.hook_resid_post", "2 output", "2.37 MB")}
    assert "known" not in done.stdout.replace("by what is known", "")
    assert re.search(r"^Time: about \d+:\d\d for what is left, by a part of it", done.stdout, re.MULTILINE)
    assert "Running a part of it, for about 10 seconds once the model is loaded." in done.stderr
    assert list(here.iterdir()) == []
    assert list(home.rglob("model.safetensors"))
    assert list(home.rglob("sae_weights.safetensors")) == []
