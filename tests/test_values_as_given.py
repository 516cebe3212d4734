"""False, 0 and "" are values: what the user gave is asked, or refused in a sentence, and never dropped."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from models import WIDTH, random_model, random_sae, word_tokenizer
from runs import answers, curve, write_run

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.cli.run import sweep_from
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.harness.fidelity_task import FidelityTask
from sae_lm_eval.report.provenance import command
from sae_lm_eval.results.results import read_results
from sae_lm_eval.runs.settings import check_settings, lm_eval_config
from sae_lm_eval.runs.sweep import Sweep, sweep_of, variant_requests

K4 = "world#blocks.2.hook_resid_post.k4"
FILE = {"model_args": {"pretrained": "world"}, "tasks": ["sae_world_homes"], "variants": [K4], "output_path": "out"}


def of_flags(*flags: str, file=None) -> Sweep:
    given = {"categories": None, "memory": None, "ray": None, "output_path": None}
    args = [*([str(file)] if file else []), "--tasks", "sae_world_homes", *flags]
    context = SimpleNamespace(args=args, command=SimpleNamespace(params=[]), info_name="run")
    return sweep_from(context, "pretrained=world", ([K4], []), [], given)


HUGE = 16**5000  # more digits than Python writes out


@pytest.mark.parametrize("number", [10**19, 10**400, HUGE], ids=["19", "400", "6021"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("limit", "limit: .* is more than any task has"),
        ("num_fewshot", "num_fewshot=.* must be below 2"),
        ("batch_size", "batch_size=.* must be a whole number of at least 1 and below 2"),
        ("samples", "samples: a: .* is no number of a document, which is below 2"),
        ("seed", "seed=.*2"),
        ("gen_kwargs", "gen_kwargs: .*temperature=.* must be"),
    ],
)
def test_whole_numbers_that_are_too_large(name, message, number):
    given = {"samples": {"a": [number]}, "gen_kwargs": {"temperature": -number}}.get(name, number)
    with pytest.raises(UserError, match=message):
        check_settings({"tasks": "a", name: given})


@pytest.mark.parametrize("name", ["batch_size", "seed"])
def test_texts_of_numbers_that_are_too_large(name):
    with pytest.raises(UserError, match=f"{name}="):
        check_settings({"tasks": "a", name: "1" * 5000})


class TestFlags:
    @pytest.mark.parametrize("word", ["false", "False", "0", "no"])
    def test_no_multiturn_prompts_behind_a_chat_template(self, word):
        sweep = of_flags("--apply_chat_template", "--fewshot_as_multiturn", word)
        assert sweep.settings["fewshot_as_multiturn"] is False
        assert lm_eval_config(sweep).fewshot_as_multiturn is False

    def test_without_the_flag_lm_evals_default_holds(self):
        assert lm_eval_config(of_flags("--apply_chat_template")).fewshot_as_multiturn is True
        assert lm_eval_config(of_flags()).fewshot_as_multiturn is None

    @pytest.mark.parametrize(
        ("flags", "name", "value"),
        [
            (("--num_fewshot", "0"), "num_fewshot", 0),
            (("--seed", "0"), "seed", [0, 0, 0, 0]),
            (("--system_instruction", ""), "system_instruction", ""),
            (("--gen_kwargs", "temperature=0,do_sample=False"), "gen_kwargs", {"temperature": 0, "do_sample": False}),
            (("--metadata", '{"a": false, "b": 0, "c": ""}'), "metadata", {"a": False, "b": 0, "c": ""}),
        ],
    )
    def test_a_flag_wins_over_the_file_whatever_its_value(self, tmp_path, flags, name, value):
        path = tmp_path / "sweep.yaml"
        other = {"num_fewshot": 3, "seed": 7, "system_instruction": "Be brief.", "gen_kwargs": {"temperature": 0.5}}
        path.write_text(json.dumps({"model_args": {"pretrained": "world"}, "tasks": ["sae_world_homes"], **other}))
        sweep = of_flags(*flags, file=path)
        assert sweep.settings[name] == value
        if name != "system_instruction":  # which lm_eval reads as none where it is empty
            setting = getattr(lm_eval_config(sweep), name)
            assert setting == value if name != "metadata" else value.items() <= setting.items()
        else:
            assert not lm_eval_config(sweep).system_instruction

    @pytest.mark.parametrize("limit", ["0", "-3"])
    def test_a_limit_that_leaves_nothing_is_refused(self, limit):
        # lm_eval would ask all documents.
        with pytest.raises(UserError, match=r"limit: .* leaves no document to ask"):
            lm_eval_config(of_flags("--limit", limit))


class TestSweepFiles:
    def test_settings_of_lm_eval(self):
        given = {
            "fewshot_as_multiturn": False,
            "apply_chat_template": True,
            "num_fewshot": 0,
            "gen_kwargs": {"top_k": 0},
        }
        settings = lm_eval_config(sweep_of({**FILE, **given}))
        assert {name: getattr(settings, name) for name in given} == given

    @pytest.mark.parametrize("limit", [0, False, -1, "few"])
    def test_limit(self, limit):
        with pytest.raises(UserError, match=r"limit: .* leaves no document to ask"):
            lm_eval_config(sweep_of({**FILE, "limit": limit}))

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ({"model_args": 0}, "model_args: 0 is no mapping"),
            ({"model_args": False}, "model_args: False is no mapping"),
            ({"variants": [{"sae": K4, "scale": []}]}, "variants, entry 1: scale: the list is empty"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, content, sentence):
        with pytest.raises(UserError, match=sentence):
            sweep_of({**FILE, **content})

    @pytest.mark.parametrize("value", [False, 0, ""])
    def test_a_mode_that_is_none_is_refused(self, value):
        # Without splice, or as null, it is what lm_eval makes of the word none.
        (variant,) = variant_requests([{"sae": K4, "splice": value}])
        assert variant.arguments["splice"] == str(value)
        with pytest.raises(UserError, match=rf"splice '{value}' is unknown"):
            adapter(splice=value)
        assert variant_requests([{"sae": K4, "splice": None}])[0].arguments["splice"] == "none"

    def test_a_scale_and_a_layer_of_0(self):
        (variant,) = variant_requests([{"sae": K4, "scale": 0, "seed": 0, "splice": "random_error"}])
        assert (variant.arguments["scale"], variant.arguments["seed"]) == (0, 0)
        with pytest.raises(UserError, match="none of the 3 dictionaries"):
            variant_requests([{"pattern": "world#*.k4", "layer": 0}])


def adapter(**kwargs) -> SaeHFLM:
    given = {"sae": random_sae(WIDTH, "blocks.1.hook_resid_post"), **kwargs}
    return SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), **given)


class TestModelArgs:
    def test_false_and_0_are_kept(self):
        lm = adapter(scale=0, seed=0, add_bos_token=False)
        assert (lm.spliced.choices.scale, lm.spliced.choices.seed, lm.add_bos_token) == (0, 0, False)
        assert adapter(prefix_token_id=0).spliced.rolling("w5 w6")[0].ids == [0, 5]

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"max_length": 0}, "max_length=0 must be a whole number of at least 1"),
            ({"params": 0}, "The number of parameters is 0"),
            ({"tokens": 0}, "The number of tokens is 0"),
            ({"hook": ""}, "hook= names no site: give one"),
            ({"hook": "blocks.1.hook_resid_post:"}, "hook=blocks.1.hook_resid_post: names no site"),
            ({"hook_map": ""}, "hook_map '' is unknown"),
            ({"sae": ""}, "sae= is missing"),
            ({"splice_tokens": ""}, "splice_tokens '' is unknown"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, given, sentence):
        with pytest.raises(UserError, match=sentence):
            adapter(**given)

    @pytest.mark.parametrize("factor", [0, False, -1.0, float("nan"), "one"])
    def test_a_norm_factor_is_a_number_above_0(self, factor):
        sae = random_sae(WIDTH, "blocks.1.hook_resid_post", normalize_activations="expected_average_only_in")
        with pytest.raises(UserError, match=r"norm_factor=.* must be a number above 0"):
            load_dictionary(sae, norm_factor=factor)


def test_no_documents_of_fidelity_is_a_sentence(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(20)))
    config = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(path)},
        "test_split": "train",
        "doc_to_text": "",
        "doc_to_target": "text",
    }
    with pytest.raises(UserError, match="documents of mine=0 must be a whole number of at least 1"):
        FidelityTask(config={**config, "metadata": {"documents": 0}})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"limit": 0}, "limit: 0 leaves no document to ask"),
        ({"max_length": 0}, "--max_length=0 must be a whole number of at least 1"),
    ],
)
def test_curve(tmp_path, given, sentence):
    with pytest.raises(UserError, match=sentence):
        curve(models="world", task="sae_world_text", output_path=tmp_path / "family.csv", **given)


@pytest.mark.parametrize(
    ("turns", "flag"), [(False, "--fewshot_as_multiturn false"), (True, "--fewshot_as_multiturn true")]
)
def test_the_command_in_the_report_asks_the_same_again(tmp_path, turns, flag):
    folder = write_run(tmp_path / "run", answers({"blimp": [1.0]}), config={"limit": 0.5, "gen_kwargs": {"top_k": 0}})
    (file,) = folder.glob("*/results_*.json")
    raw = json.loads(file.read_text()) | {"chat_template": "{{ messages }}", "fewshot_as_multiturn": turns}
    file.write_text(json.dumps(raw))
    line = command(read_results(folder))
    assert f"--apply_chat_template {flag}" in line
    assert "--gen_kwargs top_k=0" in line
