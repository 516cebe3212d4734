"""Prompts beyond the model's context: counted, told once, in the results and in the report."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from lm_eval.api.instance import Instance
from models import CONTEXT, WIDTH, random_model, random_sae, word_tokenizer, words
from runs import answers, write_run

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.report.assemble import build, compare_tasks
from sae_lm_eval.results.results import read_results
from sae_lm_eval.splicing.arguments import requested_splices

RESID = "blocks.1.hook_resid_post"
LENGTHS = (10, CONTEXT - 1, CONTEXT, CONTEXT + 1, CONTEXT + 31, 3 * CONTEXT)  # in tokens, before one to be scored


def scored(*, task: str = "long") -> list[Instance]:
    return [
        Instance("loglikelihood", {}, (words(n, seed=n), f" w{5 + c}"), c, (task, i, 1))
        for i, n in enumerate(LENGTHS)
        for c in range(2)
    ]


def generated() -> list[Instance]:
    settings = {"until": ["w7"], "max_gen_toks": 4}
    return [
        Instance("generate_until", {}, (words(n, seed=n), settings), 0, ("written", i, 1))
        for i, n in enumerate(LENGTHS)
    ]


def adapter(**kwargs) -> SaeHFLM:
    given = {"sae": random_sae(WIDTH, RESID), "batch_size": 2, **kwargs}
    return SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), **given)


@pytest.fixture
def said(caplog, monkeypatch):
    """What is logged of prompts that are too long."""
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="lm_eval")
    about = ("context", "cut", "Truncat", "truncat")
    return lambda: [r.getMessage() for r in caplog.records if any(word in r.getMessage() for word in about)]


@pytest.mark.parametrize("splice", ["none", "reconstruction"])  # run by lm_eval itself, and in forked passes
def test_scored_prompts(said, splice):
    lm = adapter(splice=splice)
    lm.loglikelihood(scored(), disable_tqdm=True)
    lm.loglikelihood(scored(), disable_tqdm=True)
    assert said() == [
        f"6 of 12 prompts (50%) do not fit into the model's context of {CONTEXT} tokens: their beginnings are cut off, "
        "45% of their tokens."
    ]
    lost, tokens = 2 * (1 + 31 + 2 * CONTEXT), 2 * (CONTEXT + 1 + CONTEXT + 31 + 3 * CONTEXT)
    assert lm.get_model_info()["sae_lm_eval"]["cut_prompts"] == {
        "long": {
            "prompts": 12,
            "cut": 6,
            "share_of_prompts": 0.5,
            "tokens_of_cut_prompts": tokens,
            "tokens_lost": lost,
            "share_of_their_tokens": lost / tokens,
        }
    }


@pytest.mark.parametrize("prepend_bos", [None, True])  # True: the adapter cuts them by itself
def test_prompts_that_are_generated_from(said, prepend_bos):
    lm = adapter(sae=random_sae(WIDTH, RESID, prepend_bos=prepend_bos))
    lm.generate_until(generated(), disable_tqdm=True)
    (message,) = said()
    assert message.startswith(f"5 of 6 prompts (83%) do not fit into the model's context of {CONTEXT} tokens")
    room, extra = CONTEXT - 4, int(bool(prepend_bos))
    record = lm.get_model_info()["sae_lm_eval"]["cut_prompts"]["written"]
    assert record["tokens_lost"] == sum(max(0, n + extra - room) for n in LENGTHS)


def test_variants_of_one_model_do_not_repeat_it(said):
    baseline = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=[], splice="none")
    variants = [baseline.as_variant(requested_splices(random_sae(WIDTH, RESID, seed=seed))) for seed in (0, 1)]
    for lm in (baseline, *variants):
        lm.loglikelihood(scored(), disable_tqdm=True)
        assert lm.get_model_info()["sae_lm_eval"]["cut_prompts"]["long"]["cut"] == 6
    assert len(said()) == 1


def test_nothing_is_said_where_all_prompts_fit(said):
    lm = adapter()
    lm.loglikelihood(scored()[:6], disable_tqdm=True)
    assert not said()
    assert lm.get_model_info()["sae_lm_eval"]["cut_prompts"] == {}


def test_no_room_for_a_prompt_is_a_sentence():
    request = replace(generated()[0], arguments=("w5", {"until": ["w7"], "max_gen_toks": CONTEXT}))
    with pytest.raises(
        UserError, match=f"{CONTEXT} tokens are to be generated, and the model reads {CONTEXT}: nothing"
    ):
        adapter().generate_until([request])


def test_the_report_says_it_once(tmp_path):
    cut = {"prompts": 40, "cut": 10, "tokens_of_cut_prompts": 1000, "tokens_lost": 300}
    record = {"splices": [], "cut_prompts": {"blimp": cut}}
    folders = [
        write_run(tmp_path / name, answers({"blimp": [1.0, 0.0]}), config={"sae_lm_eval": record})
        for name in ("a", "b")
    ]
    runs = [replace(read_results(folder), name=name) for folder, name in zip(folders, ("baseline", "k4"), strict=True)]
    notes = build(compare_tasks(runs[0], runs[1:])).notes
    assert [note for note in notes if "context" in note] == [
        "10 of 40 prompts (25.0%) did not fit into the model's context: their beginnings were cut off, 30.0% of their "
        "tokens (blimp)."
    ]
