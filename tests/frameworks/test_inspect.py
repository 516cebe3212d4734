"""Tasks of the framework Inspect, answered by the provider `sae_hf`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

inspect_ai = pytest.importorskip(
    "inspect_ai", reason="NOT TESTED: Inspect is not installed here; `make test-frameworks` installs it"
)

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.scorer import choice, includes, model_graded_qa
from inspect_ai.solver import generate, multiple_choice
from inspect_ai.tool import ToolCall
from letters import COLOURS, LETTERS

WORLD = "world#blocks.2.hook_resid_post.k4"
STORY = "blocks.2.hook_resid_post.topk8"
RAW = "{% for message in messages %}{{ message.content }}{% endfor %}"
BEGINNINGS = [
    "Once upon a time, there was a little girl named",
    "One day, a big dog",
    "Tom and Sue went to the",
    "The sun was",
    "Once upon a time",
]


def colours(count: int = 8) -> Task:
    """Questions whose last word is each colour in turn; every fourth has a target that the model does not give."""
    samples = []
    for number in range(count):
        last = COLOURS[number % 4]
        right = LETTERS[number % 4] if number % 8 != 3 else "A"
        choices = [*(colour for colour in COLOURS if colour != last), last]
        samples.append(Sample(f"Which colour is number {number}?", choices=choices, target=right, id=number))
    return Task(name="colours", dataset=samples, solver=multiple_choice(), scorer=choice())


def stories_task(scorer=None) -> Task:
    samples = [Sample(text, target="was", id=f"story {number}") for number, text in enumerate(BEGINNINGS)]
    return Task(name="stories", dataset=samples, solver=generate(), scorer=scorer or includes())


def run(task: Task, model: str, tmp_path: Path, **settings):
    arguments = {"device": "cpu", **settings.pop("model_args", {})}
    (log,) = evaluate(
        task, model=model, model_args=arguments, log_dir=str(tmp_path), display="none", log_level="error", **settings
    )
    assert log.status == "success", log.error
    return log


def saying(texts) -> Model:
    """A model that says these texts in turn; with a usage, which Inspect would count by a tokenizer from the net."""
    outputs = [ModelOutput.from_content("mockllm", text) for text in texts]
    outputs = [output.model_copy(update={"usage": ModelUsage(total_tokens=1)}) for output in outputs]
    return get_model("mockllm/model", custom_outputs=outputs)


def answers(log) -> list[str]:
    return [sample.output.completion for sample in log.samples]


def values(log) -> list[object]:
    return [next(iter(sample.scores.values())).value for sample in log.samples]


# -- tasks --------------------------------------------------------------------------------------------------


def test_a_forgotten_colour_costs_its_questions(letters, tmp_path):
    folder, dictionaries = letters
    expected = ["C", "C", "C", "I", "C", "C", "C", "C"]
    for colour in (None, "green"):
        log = run(colours(), f"sae_hf/{folder}", tmp_path, model_args={"sae": str(dictionaries[colour])})
        lost = {1, 5} if colour else set()
        assert values(log) == [("N" if number in lost else value) for number, value in enumerate(expected)]
        assert [sample.output.stop_reason for sample in log.samples] == ["stop"] * 8


def test_what_made_an_answer_stands_beside_it(letters, tmp_path):
    folder, dictionaries = letters
    log = run(colours(), f"sae_hf/{folder}", tmp_path, model_args={"sae": str(dictionaries["red"]), "scale": 0.5})
    record = json.loads(json.dumps(log.samples[0].output.metadata["sae_lm_eval"]))
    assert record == json.loads(json.dumps(log.samples[-1].output.metadata["sae_lm_eval"]))
    (splice,) = record["splices"]
    assert (splice["hook_in"], splice["mode"]) == ("blocks.0.hook_resid_post", "reconstruction")
    assert {"revision", "weights_checksum", "map_in", "dtype"} <= splice.keys()
    assert (record["scale"], record["splice_tokens"], record["model_dtype"]) == (0.5, "non_special", "float32")
    assert record["model"] == str(folder)
    assert record["sampling"] == {"do_sample": False}
    assert {"sae_lm_eval", "torch", "transformers", "sae_lens"} <= record["packages"].keys()
    assert len(record["identity"]) == 64


def test_the_world_and_a_grader(tmp_path):
    grader = saying(f"GRADE: {grade}" for grade in "CIPC")
    samples = [Sample(f"the {word} of", target="anything", id=number) for number, word in enumerate("abcd")]
    task = Task(
        name="graded", dataset=samples, solver=generate(), scorer=model_graded_qa(model=grader, partial_credit=True)
    )
    log = run(task, "sae_hf/world", tmp_path, model_args={"sae": WORLD}, max_tokens=8, max_samples=1)
    assert values(log) == ["C", "I", "P", "C"]
    (scored,) = log.results.scores
    assert scored.metrics["accuracy"].value == pytest.approx(2.5 / 4)
    assert all(sample.output.usage.output_tokens <= 8 for sample in log.samples)


# -- equal to Inspect's own hf --------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, [".", "dog"]])
def test_no_splice_says_what_hf_says(stories, tmp_path, stop):
    said = {}
    for model, own in {"hf": {"do_sample": False}, "sae_hf": {"splice": "none"}}.items():
        own = {**own, "chat_template": RAW}
        log = run(
            stories_task(), f"{model}/{stories}/stories3M", tmp_path, model_args=own, max_tokens=40, stop_seqs=stop
        )
        said[model] = answers(log)
    assert said["hf"] == said["sae_hf"]
    assert len(set(said["hf"])) == len(BEGINNINGS)


def test_a_splice_says_something_else_and_with_its_error_the_same(stories, tmp_path):
    said = {}
    for mode in ("none", "with_error", "reconstruction"):
        own = {"sae": f"{stories}/stories/sae-stories3M#{STORY}", "splice": mode, "use_chat_template": False}
        said[mode] = answers(
            run(stories_task(), f"sae_hf/{stories}/stories3M", tmp_path, model_args=own, max_tokens=40)
        )
    assert said["none"] == said["with_error"]
    assert said["none"] != said["reconstruction"]


def test_chats_are_written_as_by_hf(letters):
    folder, _ = letters
    messages = [ChatMessageSystem(content="be red"), ChatMessageUser(content="or blue")]
    for template in (
        None,
        RAW,
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{{ enable_thinking }}",
    ):
        own = {"enable_thinking": True, "device": "cpu", **({"chat_template": template} if template else {})}
        ours = get_model(f"sae_hf/{folder}", splice="none", memoize=False, **own)
        theirs = get_model(f"hf/{folder}", memoize=False, **own)
        assert ours.api.hf_chat(messages, []) == theirs.api.hf_chat(messages, [])


# -- generation -----------------------------------------------------------------------------------------------


def ask(model, text: str, **config) -> ModelOutput:
    async def answer():
        return await model.generate(text, config=GenerateConfig(**config))

    return asyncio.run(answer())


def stories_model_of(stories, **own) -> Model:
    return get_model(
        f"sae_hf/{stories}/stories3M",
        sae=f"{stories}/stories/sae-stories3M#{STORY}",
        device="cpu",
        chat_template=RAW,
        memoize=False,
        **own,
    )


@pytest.fixture(scope="module")
def stories_model(stories):
    return stories_model_of(stories)


def test_log_probabilities(stories_model):
    output = ask(stories_model, BEGINNINGS[0], max_tokens=5, logprobs=True, top_logprobs=3)
    logprobs = output.choices[0].logprobs.content
    assert len(logprobs) == output.usage.output_tokens == 5
    for step in logprobs:
        assert step.token == step.top_logprobs[0].token
        assert step.logprob == pytest.approx(step.top_logprobs[0].logprob, abs=1e-4)
        assert len(step.top_logprobs) == 3
        assert 0 >= step.top_logprobs[0].logprob >= step.top_logprobs[1].logprob
    assert output.choices[0].stop_reason == "max_tokens"


def test_draws_repeat_with_their_seed(stories):
    pairs = ((BEGINNINGS[0], 1), (BEGINNINGS[0], 2), (BEGINNINGS[1], 1), (BEGINNINGS[0], 1))
    said = [
        [ask(model, text, max_tokens=20, temperature=1.0, seed=seed).completion for text, seed in pairs]
        for model in (stories_model_of(stories), stories_model_of(stories))
    ]
    assert said[0] == said[1]
    assert len(set(said[0])) == len(pairs)


def test_variants_draw_with_the_same_noise(stories):
    unchanged, with_error, spliced = (
        [ask(model, text, max_tokens=20, temperature=1.0, seed=1).completion for text in BEGINNINGS]
        for model in (stories_model_of(stories, **own) for own in ({"scale": 0}, {"splice": "with_error"}, {}))
    )
    assert unchanged == with_error
    assert unchanged != spliced


def test_a_closed_provider_lets_its_model_go(stories):
    model = stories_model_of(stories)
    ask(model, BEGINNINGS[0], max_tokens=2)
    spliced = weakref.ref(model.api.spliced)
    model.api.close()
    assert spliced() is None


def test_sampling_stands_beside_what_was_drawn(stories_model):
    output = ask(stories_model, BEGINNINGS[2], max_tokens=20, temperature=0.7, top_p=0.9, top_k=40, seed=3)
    sampling = output.metadata["sae_lm_eval"]["sampling"]
    assert sampling == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3}


def test_requests_of_one_moment_share_a_batch(stories_model, monkeypatch):
    writer, batches = stories_model.api.writer, []
    write = writer.write
    monkeypatch.setattr(
        stories_model.api._gathered, "_answer", lambda requests: batches.append(len(requests)) or write(requests)
    )

    async def several():
        requests = [stories_model.generate(text, config=GenerateConfig(max_tokens=12)) for text in BEGINNINGS]
        return await asyncio.gather(*requests)

    together = [output.completion for output in asyncio.run(several())]
    assert batches == [len(BEGINNINGS)]
    assert together == [ask(stories_model, text, max_tokens=12).completion for text in BEGINNINGS]


def test_a_prompt_that_is_too_long(stories_model):
    output = ask(stories_model, "once " * 600)
    assert (output.stop_reason, output.completion) == ("model_length", "")
    assert "leaves no room for a text: the model reads at most 512." in output.error


def test_tools_are_read_as_by_hf(letters):
    """Models of the kind write calls as JSON between tags; the words come from Inspect's own parser."""
    from inspect_ai.tool import ToolInfo
    from inspect_ai.tool._tool_params import ToolParams

    folder, _ = letters
    model = get_model(f"sae_hf/{folder}", splice="none", device="cpu", memoize=False)
    tool = ToolInfo(name="add", description="adds", parameters=ToolParams())
    message = model.api._message('<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call>', [tool])
    assert [(call.function, call.arguments) for call in message.tool_calls] == [("add", {"x": 1})]
    assert isinstance(message.tool_calls[0], ToolCall)
    assert model.api._message("plain", [tool]).tool_calls is None


def test_inspects_cache_tells_variants_apart(letters):
    folder, dictionaries = letters
    bases = {
        get_model(f"sae_hf/{folder}", device="cpu", memoize=False, **own).api.base_url
        for own in (
            {"splice": "none"},
            {"sae": str(dictionaries["red"])},
            {"sae": str(dictionaries["blue"])},
            {"sae": str(dictionaries["blue"]), "do_sample": True},
        )
    }
    assert len(bases) == 4
    again = get_model(f"sae_hf/{folder}", device="cpu", memoize=False, splice="none")
    assert again.api.base_url in bases


# -- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"splice": "reconstruct"}, "sae_hf: splice 'reconstruct' is unknown. Did you mean 'reconstruction'?"),
        ({"pretrained": "gpt2"}, "sae_hf: pretrained= is not for Inspect: the model is named behind sae_hf/"),
        ({"do_sampel": True}, "sae_hf: sae_hf has no argument 'do_sampel'. Did you mean 'do_sample'?"),
        ({"clamp": 723.5}, "sae_hf: Inspect reads -M values as YAML, where clamp=12:3.5 is a time of day"),
        ({"norm_factor": 1650}, "sae_hf: Inspect reads -M values as YAML, where norm_factor=27:30 is a time of day"),
        ({"sae": "world#nowhere"}, "sae_hf: The world has no dictionary 'nowhere'."),
        ({"params": 1e6}, "sae_hf: params= is not for Inspect"),
        ({"max_length": 0, "sae": WORLD}, "sae_hf: max_length"),
        ({"batch_size": 0, "sae": WORLD}, "sae_hf: batch_size=0 must be a whole number of at least 1."),
    ],
)
def test_a_mistake_is_told_in_a_sentence(given, sentence):
    with pytest.raises(PrerequisiteError) as error:
        get_model("sae_hf/world", memoize=False, device="cpu", **given)
    assert str(error.value.message).startswith(sentence)


def commanded(tmp_path: Path, task: str, environment: dict[str, str], *arguments: str):
    """What `inspect eval` does with one of this file's tasks, and what it says."""
    (tmp_path / "tasks.py").write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from inspect_ai import task\n"
        "import test_inspect\n"
        "@task\n"
        f"def {task}():\n"
        f"    return test_inspect.{task}()\n"
    )
    command = [Path(sys.executable).parent / "inspect", "eval", f"tasks.py@{task}", *arguments, "--display", "plain"]
    environment = {**os.environ, **environment, "INSPECT_LOG_DIR": "logs"}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


def logged(tmp_path: Path):
    (file,) = (tmp_path / "logs").glob("*.eval")
    return inspect_ai.log.read_eval_log(str(file))


def test_the_command_with_names_of_the_hub(hub_environment, tmp_path):
    given = ["sae=stories/sae-stories3M#" + STORY, "device=cpu", "use_chat_template=false"]
    arguments = [word for argument in given for word in ("-M", argument)]
    arguments = ["--model", "sae_hf/stories3M", *arguments, "--max-tokens", "8"]
    done = commanded(tmp_path, "stories_task", hub_environment, *arguments)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    log = logged(tmp_path)
    assert log.status == "success"
    record = log.samples[0].output.metadata["sae_lm_eval"]
    assert (record["model"], record["prompt_format"]) == ("stories3M", "role: text")
    assert record["splices"][0]["dictionary"] == "stories/sae-stories3M#" + STORY
    assert len(record["model_sha"]) == 40
    assert record["model_num_parameters"] > 3e6


def test_the_command(letters, hub_environment, tmp_path):
    folder, dictionaries = letters
    given = ["--model", f"sae_hf/{folder}", "-M", f"sae={dictionaries['white']}", "-M", "device=cpu"]
    done = commanded(tmp_path, "colours", hub_environment, *given, "-M", "batch_size=4")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    log = logged(tmp_path)
    assert values(log) == ["C", "C", "C", "N", "C", "C", "C", "N"]
    assert log.eval.model_args == {"sae": str(dictionaries["white"]), "device": "cpu", "batch_size": 4}
    wrong = commanded(tmp_path, "colours", hub_environment, *given, "-M", "splice=zerro")
    said = wrong.stdout + wrong.stderr
    assert "splice 'zerro' is unknown. Did you mean 'zero'?" in said
    assert "Traceback" not in said
