"""The sae_fidelity tasks as commands run them: beside other tasks, by several processes, and as lm_eval's own sums."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from test_fidelity import TASKS, adapter, spoken

WORLD = "--model sae_hf --model_args pretrained=world,sae=world#blocks.2.hook_resid_post.k4 --limit 12 --batch_size 8"
STORIES = "--model sae_hf --model_args pretrained=stories3M,sae=stories/sae-stories3M#blocks.2.hook_resid_post.topk32"
TWO = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")


def run(out: Path, arguments: str, launch: tuple[str, ...] = (), **environment: str) -> tuple[dict, dict, str]:
    """The results, the samples by task, and what was said."""
    command = [sys.executable, "-m", *launch, "lm_eval", *arguments.split(), "--output_path", str(out), "--log_samples"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", **environment}
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-2000:]
    (file,) = out.rglob("results_*.json")
    results = json.loads(file.read_text())
    samples = {
        task: [
            json.loads(line) for file in out.rglob(f"samples_{task}_*.jsonl") for line in file.read_text().splitlines()
        ]
        for task in results["n-samples"]
    }
    return results, samples, said.stderr


@pytest.mark.slow
def test_two_processes_give_what_one_gives_beside_another_task(tmp_path):
    arguments = f"{WORLD} --tasks sae_world_villages,sae_fidelity_world"
    alone, samples_of_one, _ = run(tmp_path / "one", arguments)
    two, samples_of_two, said = run(tmp_path / "two", arguments, TWO)
    assert all(f"Building contexts for sae_fidelity_world on rank {rank}" in said for rank in (0, 1))
    assert sorted(alone["results"]) == ["sae_fidelity_world", "sae_world_villages"]
    for task, scores in alone["results"].items():
        numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
        assert "acc,none" in numbers or {"ce_spliced,none", "fvu,none"} <= set(numbers)
        assert {name: two["results"][task][name] for name in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-6)
    for task, samples in samples_of_one.items():
        assert sorted(s["doc_id"] for s in samples_of_two[task]) == sorted(s["doc_id"] for s in samples) == [*range(12)]
    categories = [
        results["config"]["sae_lm_eval"]["fidelity"]["sae_fidelity_world"]["by_category"] for results in (alone, two)
    ]
    assert list(categories[0]) == list(categories[1])
    # Twelve documents are not the text that the world's checkpoints were measured on, and no law reaches so far.
    for results in (alone, two):
        assert results["results"]["sae_fidelity_world"]["effective_compute,none"] == "N/A"
        compute = results["config"]["sae_lm_eval"]["effective_compute"]["sae_fidelity_world"]
        assert compute["reason"].startswith("outside the law")
    for category, values in categories[0].items():
        defined = {name: value for name, value in values.items() if value is not None}
        other = {name: value for name, value in categories[1][category].items() if value is not None}
        assert other == pytest.approx(defined, rel=1e-5, abs=1e-6), category


@pytest.mark.slow
def test_wikitext_has_the_nats_of_lm_evals_wikitext(hub_environment, tmp_path):
    # Without it lm_eval reads a document of stories3M behind two BOS tokens, and fidelity behind one.
    arguments = f"{STORIES},add_bos_token=False --tasks wikitext,sae_fidelity_wikitext --limit 1 --batch_size 8"
    results, samples, _ = run(tmp_path, arguments, **hub_environment)
    theirs = {s["doc_id"]: s["word_perplexity"] for s in samples["wikitext"]}
    own = {s["doc_id"]: s["ce_spliced"] for s in samples["sae_fidelity_wikitext"]}
    nats = {number: nll for number, (_, nll, _) in own.items()}
    assert {number: -loglikelihood for number, (loglikelihood, _) in theirs.items()} == pytest.approx(nats, rel=1e-5)
    words = sum(words for _, words in theirs.values())
    tokens = sum(tokens for _, _, tokens in own.values())
    ce = results["results"]["sae_fidelity_wikitext"]["ce_spliced,none"]
    perplexity = results["results"]["wikitext"]["word_perplexity,none"]
    assert math.log(perplexity) * words == pytest.approx(ce * tokens, rel=1e-5)


def test_the_group_is_all_its_texts(tmp_path):
    """Their data is not to be had here: a local file with the same columns stands in for each."""
    rows = [
        {"text": text, "page": text, "meta": {"pile_set_name": "Github" if i % 2 else "Pile-CC"}}
        for i, text in enumerate(spoken("llama", 9, seed=i) for i in range(12))
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = "".join(f"\n    {split}: {data}" for split in ("train", "validation", "test"))
    for file in TASKS.iterdir():
        text = re.sub(r"dataset_kwargs:\n( +.*\n)+|dataset_name: .*\n", "", file.read_text())
        text = re.sub(r"dataset_path: .*", f"dataset_path: json\ndataset_kwargs:\n  data_files:{files}", text)
        (tmp_path / file.name).write_text(text)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(model=adapter(), tasks=["sae_fidelity"], task_manager=tasks, bootstrap_iters=0)
    assert results is not None
    texts = [f"sae_fidelity_{name}" for name in ("openwebtext", "pile", "tinystories", "wikitext")]
    assert sorted(results["n-samples"]) == texts
    assert [results["n-samples"][task]["effective"] for task in texts] == [11, 11, 11, 12]
    said = results["config"]["sae_lm_eval"]["fidelity"]
    assert sorted(said["sae_fidelity_pile"]["by_category"]) == ["Github", "Pile-CC"]
    assert said["sae_fidelity_wikitext"]["mean"]["split"] == "validation"
    for task in texts:
        assert isinstance(results["results"][task]["ce_mean,none"], float)
        assert task in results["config"]["sae_lm_eval"]["effective_compute"]
