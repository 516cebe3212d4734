"""Runs that several processes share, and those that a Ray cluster shares: what one process gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from folders import contents

from sae_lm_eval import UserError
from sae_lm_eval.runs import ray_cluster as cluster
from sae_lm_eval.runs.ray_cluster import Part, run_on_cluster
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.runtime.host_memory import TOLD as NO_MEMORY
from sae_lm_eval.runtime.host_memory import HostMemoryError
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.progress import Progress

K4, K32 = "world#blocks.2.hook_resid_post.k4", "world#blocks.3.hook_resid_post.k32"
TOLD = Path(__file__).parent / "data" / "told"
ARGUMENTS = [
    *("run", "--model_args", "pretrained=world", "--sae", K4, "--sae", K32, "--control", "zero"),
    *("--include_path", str(TOLD), "--memory", "0.0001"),  # a forked pass for each variant
    *("--tasks", "sae_world_homes,sae_world_copying,read,told,sae_fidelity_world", "--limit", "7", "--device", "cpu"),
]
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
PROGRAM = [str(Path(sys.executable).parent / "sae-lm-eval")]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def started(arguments, cwd, program=PROGRAM) -> subprocess.Popen:
    # Outside a checkout, whose commit the results would hold.
    return subprocess.Popen(
        [*program, *arguments], env=ENVIRONMENT, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen) -> str:
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr[-3000:]
    return stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    said(started([*ARGUMENTS, "--output_path", "out"], folder))
    return folder / "out"


def test_a_cluster_of_which_a_worker_is_killed_gives_the_same_files(alone, tmp_path):
    process = started([*ARGUMENTS, "--output_path", "out", "--ray", "local"], tmp_path)
    killed = kill_a_worker(process)
    output = said(process)
    assert killed
    assert contents(tmp_path / "out") == contents(alone)
    (answers, shared) = re.search(r"([\d,]+) answers, ([\d,]+) of them from shared passes", output).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert answers == shared


def kill_a_worker(process: subprocess.Popen) -> bool:
    """Kill one of the cluster's workers once it is at work."""
    while process.poll() is None:
        for worker in psutil.Process(process.pid).children(recursive=True):
            try:
                at_work = "ray::sae_lm_eval" in " ".join(worker.cmdline())
            except psutil.NoSuchProcess:
                continue
            if at_work:
                time.sleep(1)
                worker.kill()
                return True
        time.sleep(0.05)
    return False


def test_several_processes_give_what_one_gives(alone, tmp_path):
    said(started(["--module", "sae_lm_eval", *ARGUMENTS, "--output_path", "out"], tmp_path, TWO))
    several = tmp_path / "out"
    names = {path.name for path in alone.iterdir() if path.name != ".pace.json"}
    assert {path.name for path in several.iterdir()} - {".pace.json"} == names
    for name in ("baseline", *(path.name for path in alone.iterdir() if path.name.startswith("world_"))):
        (single,), (other,) = ((folder / name).glob("*/results_*.json") for folder in (alone, several))
        single, other = (json.loads(file.read_text()) for file in (single, other))
        assert other["n-samples"] == single["n-samples"]
        for task, scores in single["results"].items():
            numbers = {metric: value for metric, value in scores.items() if isinstance(value, float)}
            assert {metric: other["results"][task][metric] for metric in numbers} == pytest.approx(
                numbers, rel=1e-5, abs=1e-6
            )
        single_kl, other_kl = (file["config"]["sae_lm_eval"]["kl_at_answers"] for file in (single, other))
        assert other_kl.keys() == single_kl.keys()
        for task, kl in single_kl.items():
            assert other_kl[task] == pytest.approx(kl, rel=1e-4, abs=1e-6)


def test_several_processes_go_on_where_they_were_cut_short(alone, tmp_path):
    process = started(["--module", "sae_lm_eval", *ARGUMENTS, "--output_path", "out"], tmp_path, TWO)
    while not (tmp_path / "out" / "baseline").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    for worker in [*psutil.Process(process.pid).children(recursive=True), process]:
        worker.kill()
    process.communicate()
    output = said(started(["--module", "sae_lm_eval", *ARGUMENTS, "--output_path", "out"], tmp_path, TWO))
    assert "5 of 5 models done" in output
    assert sorted(path.name for path in (tmp_path / "out" / "baseline").iterdir()) == sorted(
        path.name for path in (alone / "baseline").iterdir()
    )


def test_a_mistake_is_told_by_several_processes(tmp_path):
    arguments = ["run", "--model_args", "pretrained=world", "--sae", "world#k5", "--tasks", "sae_world_homes"]
    process = started(["--module", "sae_lm_eval", *arguments, "--output_path", "out"], tmp_path, TWO)
    _, stderr = process.communicate()
    assert process.returncode != 0
    assert "sae-lm-eval: The world has no dictionary 'k5'." in stderr


class TestMistakes:
    SWEEP = sweep_of({"model_args": {"pretrained": "world"}, "variants": [K4], "tasks": ["sae_world_homes"]})
    PART = Part(("k4",), ("baseline", "k4"), "sae_world_homes", False)

    def run_on_cluster(self, address="nowhere.invalid:6379"):
        run_on_cluster(address, self.SWEEP, [self.PART], Journal(), Progress())  # pyright: ignore[reportArgumentType]

    def test_no_ray(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(UserError, match=r"--ray needs Ray, which is not installed: pip install 'sae-lm-eval\[ray"):
            self.run_on_cluster()

    def test_no_cluster(self):
        with pytest.raises(UserError, match=r"No Ray cluster answers at 'nowhere\.invalid:6379'"):
            self.run_on_cluster()

    def test_nothing_is_asked_of_a_cluster_that_is_done_already(self):
        journal = Journal()
        journal.put(cluster.PARTS, {self.PART.key: b""})
        run_on_cluster("nowhere.invalid:6379", self.SWEEP, [self.PART], journal, Progress())  # pyright: ignore[reportArgumentType]


class TestMemoryOfAWorker:
    """Without a cluster: what a worker lets through, and what is made of it."""

    PART = Part(("k4",), ("k4",), "told", bos=False)

    def worker(self, error: Exception) -> cluster._Worker:
        def evaluate(*_args, **_settings):
            raise error

        worker = object.__new__(cluster._Worker)
        worker.group, worker.models, worker.journal = self.PART.group, {"k4": None}, Journal()
        worker.loaded = SimpleNamespace(tasks={"tasks": {"told": None}}, evaluate=evaluate)
        return worker

    def test_too_little_memory_is_not_taken_for_an_answer(self):
        with pytest.raises(HostMemoryError):
            self.worker(HostMemoryError(NO_MEMORY)).answers(self.PART)

    def test_what_a_variant_cannot_be_asked_is_left_to_the_run(self):
        assert self.worker(UserError("no latents")).answers(self.PART) == []

    @pytest.mark.parametrize(
        "cause", [MemoryError(), HostMemoryError(NO_MEMORY), RuntimeError("Cannot allocate memory")]
    )
    def test_it_ends_the_run_with_the_sentence_on_memory(self, cause):
        class TaskError(Exception):
            def __init__(self, cause):
                self.cause = cause

        def get(_done):
            raise TaskError(cause)

        ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayTaskError=TaskError, RayError=TaskError))
        with pytest.raises(HostMemoryError, match="The memory of this machine does not suffice"):
            cluster._taken(ray, None, self.PART)
