"""Effective compute of the sae_fidelity tasks: what is known of the model, and what the results say of it."""

from __future__ import annotations

import dataclasses
import json
import math

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from models import WIDTH, random_model, random_sae, word_tokenizer
from test_fidelity import HELD_OUT, RESID, TASKS, adapter, ask, spoken

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.fidelity.source import TextRequest, TextSource
from sae_lm_eval.scaling import effective_compute
from sae_lm_eval.scaling.conversion import compute_of, world_checkpoints
from sae_lm_eval.scaling.which_original import original_of

KNOWN = {"params": 70e6, "tokens": 300e9}


def records(*losses: tuple[float, float], category: str | None = None) -> list[dict]:
    """Documents of 100 tokens with a baseline and a spliced loss a token."""
    return [
        {"tokens": 100, "nll_baseline": 100 * baseline, "nll_spliced": 100 * spliced, "category": category}
        for baseline, spliced in losses
    ]


def test_it_is_what_the_losses_give_under_the_default_law():
    compute = compute_of(records((3.0, 3.2), (3.4, 3.5), (2.9, 3.1)), original_of("", **KNOWN))
    expected = effective_compute(ce_baseline=3.1, ce_spliced=9.8 / 3, **KNOWN).preferred
    assert compute["fraction"] == pytest.approx(expected.fraction)
    assert compute["law"] == expected.curve
    assert 0 < compute["low"] < compute["fraction"] < compute["high"]
    assert "documents" in compute["covers"]
    assert any("fewer than 30 documents" in flag for flag in compute["flags"])


def test_no_rise_of_the_loss_is_the_whole_compute():
    assert compute_of(records((3.0, 3.0), (2.0, 2.0)), original_of("", **KNOWN))["fraction"] == 1


def test_a_run_knows_the_text_of_its_task():
    """In its own record a law is calibrated for the text of the task that a run measures."""
    lm = adapter(params=1e9, tokens=1e11)
    source = TextSource("test", HELD_OUT)
    for task in ("sae_fidelity_wikitext", "other"):
        requests = [TextRequest(task, index, spoken("llama", 9, seed=index), None, source) for index in range(3)]
        lm.fidelity.answer(lm.spliced, requests, lm.original, show=False)
    compute = lm.fidelity.effective_compute
    assert (compute["sae_fidelity_wikitext"]["text"], compute["other"]["text"]) == ("wikitext", None)
    assert compute["sae_fidelity_wikitext"]["law"] == "olmo_ladder_wikitext"


def test_each_category_is_converted_by_itself():
    by_category = {
        "a": records((3.0, 3.1), (3.2, 3.4), category="a"),
        "b": records((2.0, 2.6), (2.1, 2.5), category="b"),
    }
    compute = compute_of([*by_category["a"], *by_category["b"]], original_of("", **KNOWN))
    assert sorted(compute["by_category"]) == ["a", "b"]
    alone = compute_of(by_category["b"], original_of("", **KNOWN))["by_category"]["b"]
    assert compute["by_category"]["b"] == alone
    assert compute["by_category"]["b"]["fraction"] < compute["by_category"]["a"]["fraction"]


def test_known_models_have_their_source_and_unknown_ones_say_what_they_need():
    pythia = original_of("EleutherAI/pythia-70m")
    assert pythia.params
    assert pythia.tokens
    assert "Biderman" in pythia.tokens_source
    assert original_of("EleutherAI/pythia-70m", "step1000").tokens is None
    gpt2 = compute_of(records((3.0, 3.2), (3.4, 3.5)), original_of("gpt2"))
    assert gpt2["fraction"] is None
    assert gpt2["reason"] == (
        "needs training tokens, not known of gpt2-small: never published (WebText, 40 GB of text): "
        "give them in --model_args, as in tokens=1e10"
    )


def test_the_world_has_a_curve_of_its_own():
    end = float(world_checkpoints().loss[-1])
    compute = compute_of(records((end, end + 0.2), (end, end + 0.21)), original_of("world"))
    assert compute["law"] == "world checkpoints"
    assert 0 < compute["fraction"] < 1
    named = [*records((end, end + 0.2), category="a"), *records((end, end + 0.21), category="b")]
    category = compute_of(named, original_of("world"))["by_category"]["a"]
    assert (category["law"], category["fraction"]) == ("world checkpoints", None)
    assert "has no losses of this category" in category["reason"]
    elsewhere = compute_of(records((3.0, 3.2), (3.1, 3.2)), original_of("world"))
    assert elsewhere["law"] == "besiroglu2024"
    assert any("the checkpoints isotonic curve of world checkpoints is not used" in f for f in elsewhere["flags"])


class TestInResults:
    @staticmethod
    def evaluate(lm: SaeHFLM, tmp_path) -> tuple[dict, dict]:
        path = tmp_path / "text.jsonl"
        path.write_text("".join(json.dumps({"text": spoken("llama", 9 + i, seed=i)}) + "\n" for i in range(6)))
        metadata = {"sae_fidelity_text": {"file": str(path)}}
        tasks = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
        results = lm_eval.simple_evaluate(model=lm, tasks=["sae_fidelity_text"], task_manager=tasks)
        assert results is not None
        said = results["config"]["sae_lm_eval"]["effective_compute"]
        return results["results"]["sae_fidelity_text"], said["sae_fidelity_text"]

    def test_parameters_and_tokens_are_arguments(self, tmp_path):
        lm = adapter(**KNOWN)
        lm.original = dataclasses.replace(lm.original, vocabulary=10**6)  # an untrained model is above ln(vocabulary)
        results, said = self.evaluate(lm, tmp_path)
        assert results["effective_compute,none"] == said["fraction"] > 0
        assert results["effective_compute_stderr,none"] == "N/A"
        assert (said["params"], said["tokens"], said["tokens_source"]) == (70e6, 300e9, "given by the user")

    def test_a_loss_above_that_of_knowing_nothing_is_not_converted(self, tmp_path):
        lm = adapter(**KNOWN)
        assert lm.original.vocabulary == lm.model.config.vocab_size
        results, said = self.evaluate(lm, tmp_path)
        assert results["ce_spliced,none"] > math.log(lm.original.vocabulary)
        assert results["effective_compute,none"] == "N/A"
        assert said["reason"].startswith("the spliced CE")
        assert said["vocabulary"] == lm.original.vocabulary

    def test_without_tokens_it_is_undefined(self, tmp_path):
        results, said = self.evaluate(adapter(), tmp_path)
        assert results["effective_compute,none"] == "N/A"
        assert said["reason"].startswith("needs training tokens")

    def test_the_world_is_known(self):
        lm = SaeHFLM(pretrained="world", sae="world#blocks.2.hook_resid_post.k4")
        assert lm.original == original_of("world")

    def test_parameters_are_counted(self):
        lm = adapter(tokens=1e9)
        assert lm.original.params == sum(p.numel() for p in lm.model.parameters())
        ask(lm, [HELD_OUT[0]], source=TextSource("test"))
        assert lm.fidelity.effective_compute["fidelity"]["params"] == lm.original.params

    @pytest.mark.parametrize(("wrong", "says"), [({"tokens": 0}, "must be positive"), ({"params": "big"}, "a number")])
    def test_mistakes_are_told(self, wrong, says):
        with pytest.raises(UserError, match=says):
            SaeHFLM(
                pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=[random_sae(WIDTH, RESID)], **wrong
            )
