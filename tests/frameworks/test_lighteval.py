"""The example's model for lighteval, beside lighteval's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "lighteval", reason="NOT TESTED: lighteval is not installed here; `make test-frameworks` installs it"
)

from lighteval.models.custom.custom_model import CustomModelConfig
from lighteval.models.model_loader import load_model
from lighteval.models.transformers.transformers_model import TransformersModelConfig
from lighteval.tasks.requests import Doc

EXAMPLE = Path(__file__).parents[2] / "examples" / "lighteval" / "sae_hf.py"
# The command with nothing in the place of a file for its tinyBenchmarks, which it fetches whatever the tasks are.
OFFLINE = """
import requests, types
requests.get = lambda *_, **__: types.SimpleNamespace(status_code=404)
from lighteval.__main__ import app
app()
"""
SAE = "blocks.2.hook_resid_post.topk8"
QUESTIONS = [
    ("Once upon a time, there was a little", ["girl", "extraordinary", "boy named Tim"], 0),
    ("The dog wanted to", ["play", "evaluate"], 0),
    ("She was very", ["happy.", "sad.", "forty-two."], 0),
    ("Tom and Sue went to the park. They saw a big", ["tree", "of"], 0),
]


def documents() -> list[Doc]:
    return [
        Doc(query=query, choices=choices, gold_index=gold, generation_size=12, stop_sequences=["."], id=str(i))
        for i, (query, choices, gold) in enumerate(QUESTIONS)
    ]


def custom(arguments: str):
    return load_model(CustomModelConfig(model_name=arguments, model_definition_file_path=str(EXAMPLE)))


@pytest.fixture(scope="module")
def plain(stories):
    return custom(f"pretrained={stories}/stories3M,splice=none,device=cpu")


def test_no_splice_scores_as_lightevals_own_model(stories, plain):
    own = load_model(TransformersModelConfig(model_name=f"{stories}/stories3M", dtype="float32", batch_size=2))
    for ours, theirs in zip(plain.loglikelihood(documents()), own.loglikelihood(documents()), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-4)
        assert ours.argmax_logits_eq_gold == theirs.argmax_logits_eq_gold
    for ours, theirs in zip(plain.greedy_until(documents()), own.greedy_until(documents()), strict=True):
        assert ours.text[0].strip() == theirs.text[0].partition(".")[0].strip()
        assert ours.text[0]


def test_a_splice_costs_log_probability(stories, plain):
    spliced = custom(f"pretrained={stories}/stories3M,device=cpu,sae={stories}/stories/sae-stories3M#{SAE}")
    before, after = (
        sum(response.logprobs[0] for response in model.loglikelihood(documents())) for model in (plain, spliced)
    )
    assert after < before
    rolled = [model.loglikelihood_rolling(documents())[0].logprobs[0] for model in (plain, spliced)]
    assert rolled[1] < rolled[0] < 0


def test_several_texts_of_a_prompt_are_refused(plain):
    doc = documents()[0]
    doc.num_samples = 4
    with pytest.raises(ValueError, match="several texts a prompt"):
        plain.greedy_until([doc])


def test_the_command(stories, hub_environment, tmp_path):
    lines = [{"query": query, "choices": choices, "gold": gold} for query, choices, gold in QUESTIONS]
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = f"pretrained={stories}/stories3M,device=cpu,sae={stories}/stories/sae-stories3M#{SAE}"
    command = [sys.executable, "-c", OFFLINE, "custom", arguments, EXAMPLE, "story_endings|0,story_texts|0"]
    command += ["--custom-tasks", Path(__file__).with_name("lighteval_tasks.py"), "--output-dir", tmp_path / "out"]
    environment = {**os.environ, **hub_environment, "STORY_QUESTIONS": str(data)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())
    assert results["config_general"]["model_config"]["model_name"] == arguments
    assert 0 <= results["results"]["story_endings|0"]["acc"] <= 1
    assert "story_texts|0" in results["results"]
