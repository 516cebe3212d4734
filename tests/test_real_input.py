"""lm_eval's unmodified tasks on a really trained model and its dictionaries, from a hub on loopback."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SAE = "stories/sae-stories3M#blocks.2.hook_resid_post"
RUNS = {
    "hf": ("hf", "pretrained=stories3M"),
    "none": ("sae_hf", f"pretrained=stories3M,sae={SAE}.topk32,splice=none"),
    "topk32": ("sae_hf", f"pretrained=stories3M,sae={SAE}.topk32"),
    "topk8": ("sae_hf", f"pretrained=stories3M,sae={SAE}.topk8"),
    "zero": ("sae_hf", f"pretrained=stories3M,sae={SAE}.topk32,splice=zero"),
}
SHOTS = ["mmlu_abstract_algebra", "mmlu_virology"]
EVALUATE = """
import json, sys, lm_eval
runs, tasks, shots, limit = json.loads(sys.argv[1])
out = {
    name: lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=tasks, num_fewshot=shots, limit=limit, device="cpu", batch_size=32,
        bootstrap_iters=0,
    )
    for name, (model, args) in runs.items()
}
keep = ("results", "samples", "config", "n-samples")
json.dump({n: {k: r[k] for k in keep} for n, r in out.items()}, open(sys.argv[2], "w"), default=str)
"""


def evaluate(environment: dict[str, str], out: Path, tasks: list[str], shots: int | None, limit: int) -> dict:
    arguments = json.dumps([RUNS, tasks, shots, limit])
    subprocess.run([sys.executable, "-c", EVALUATE, arguments, str(out)], env=environment, check=True)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def blimp(hub_environment, tmp_path_factory) -> dict:
    """All 67 paradigms, the first documents of each."""
    return evaluate(hub_environment, tmp_path_factory.mktemp("blimp") / "out.json", ["blimp"], None, 8)


@pytest.fixture(scope="module")
def mmlu(hub_environment, tmp_path_factory) -> dict:
    return evaluate(hub_environment, tmp_path_factory.mktemp("mmlu") / "out.json", SHOTS, 5, 4)


def answers(run: dict) -> dict:
    return {task: [s["resps"] for s in samples] for task, samples in run["samples"].items()}


def test_all_paradigms_are_there(blimp):
    assert len(blimp["topk32"]["samples"]) == 67


@pytest.mark.parametrize("suite", ["blimp", "mmlu"])
def test_none_equals_hf_to_the_last_digit(suite, request):
    runs = request.getfixturevalue(suite)
    assert answers(runs["none"]) == answers(runs["hf"])
    assert runs["none"]["results"] == runs["hf"]["results"]


@pytest.mark.parametrize("suite", ["blimp", "mmlu"])
def test_a_reconstruction_does_not(suite, request):
    runs = request.getfixturevalue(suite)
    assert answers(runs["topk32"]) != answers(runs["hf"])


def test_fewer_latents_hurt_more(blimp):
    """The log-probability of the well-formed sentence, averaged over all documents: hf > topk32 > topk8 > zero."""

    def mean(run: dict) -> float:
        return statistics.mean(float(s["resps"][0][0][0]) for samples in run["samples"].values() for s in samples)

    hf, topk32, topk8, zero = (mean(blimp[name]) for name in ("hf", "topk32", "topk8", "zero"))
    assert hf > topk32 > topk8 > zero


def test_zero_falls_to_chance(blimp):
    accuracy, documents = blimp["zero"]["results"]["blimp"]["acc,none"], 67 * 8
    assert abs(accuracy - 0.5) < 4 * 0.5 / documents**0.5
    assert blimp["hf"]["results"]["blimp"]["acc,none"] > accuracy


def test_results_carry_provenance(blimp):
    said = blimp["topk32"]["config"]["sae_lm_eval"]
    (splice,) = said["splices"]
    assert splice["dictionary"] == f"{SAE}.topk32"
    assert len(splice["revision"]) == 40
    assert splice["writes"] == "model.layers.2.output"
    assert said["bos"] == "lm_eval's default, which adds one"


def test_two_processes_give_what_one_gives(blimp, hub_environment, tmp_path):
    """Launched as `accelerate launch` launches them, they divide the documents; without a GPU too."""
    arguments = (
        f"--model sae_hf --model_args {RUNS['topk32'][1]} --tasks blimp_adjunct_island --limit 8 --batch_size 32"
    )
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2 -m lm_eval"
    folder = tmp_path / "out"
    command = [sys.executable, *launch.split(), *arguments.split(), "--output_path", str(folder), "--log_samples"]
    environment = {**hub_environment, "ACCELERATE_USE_CPU": "1"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    assert all(f"Building contexts for blimp_adjunct_island on rank {rank}" in said.stderr for rank in (0, 1))
    written = json.loads(next(folder.rglob("results_*.json")).read_text())
    alone = blimp["topk32"]["results"]["blimp_adjunct_island"]["acc,none"]
    assert written["results"]["blimp_adjunct_island"]["acc,none"] == alone
    samples = [json.loads(line) for line in next(folder.rglob("samples_*.jsonl")).read_text().splitlines()]
    assert len(samples) == 8
    expected = {s["doc_id"]: float(s["resps"][0][0][0]) for s in blimp["topk32"]["samples"]["blimp_adjunct_island"]}
    assert {s["doc_id"]: float(s["resps"][0][0][0]) for s in samples} == pytest.approx(expected, abs=1e-4)


def test_the_command_tells_a_mistake_without_a_traceback(hub_environment):
    command = [str(Path(sys.executable).parent / "lm_eval"), "--model", "sae_hf", "--tasks", "blimp_adjunct_island"]
    wrong = f"pretrained=stories3M,sae={SAE}.topk33"
    said = subprocess.run([*command, "--model_args", wrong], env=hub_environment, capture_output=True, text=True)
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert said.stderr.strip().splitlines()[-1].startswith("sae_hf: 'stories/sae-stories3M' holds no dictionary #")


def test_a_hub_repository_at_a_revision(hub_environment):
    code = (
        "from sae_lm_eval.dictionaries.loading import load_dictionary as load\n"
        f"d = load('{SAE}.topk32'); e = load('{SAE}.topk32@' + d.revision)\n"
        "print(d.fingerprint() == e.fingerprint(), d.revision == e.revision, d.model_names[0])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], env=hub_environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "True", "stories3M"]


def test_without_an_id_no_dictionary_of_a_repository_is_downloaded(hub_environment, tmp_path):
    environment = {**hub_environment, "HF_HOME": str(tmp_path)}
    code = """
from sae_lm_eval.dictionaries.hub_files import weights_folder
from sae_lm_eval.dictionaries.spec import SaeSpec
weights_folder(SaeSpec.parse("stories/sae-stories3M"), "sae_weights.safetensors")
"""
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = said.stderr.strip().splitlines()[-1]
    assert "holds no dictionary" in last
    assert "blocks.2.hook_resid_post.topk8" in last
    assert not list(tmp_path.rglob("*.safetensors"))
