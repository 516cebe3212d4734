"""Several threads that ask one model get their own answers, in turn."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from lm_eval.api.instance import Instance
from models import WIDTH, random_model, random_sae, word_tokenizer

from sae_lm_eval import SaeHFLM
from sae_lm_eval.runtime.model_lock import lock_of

HOOK = "blocks.1.hook_resid_post"


def instances(start: int) -> list[Instance]:
    words = [f"w{number}" for number in range(start, start + 6)]
    return [
        Instance("loglikelihood", {}, (" ".join(words[:-1]), f" {words[-1]} w{choice}"), choice, ("task", start, 1))
        for choice in range(4, 9)
    ]


@pytest.fixture
def model():
    return random_model("llama")


def adapter(model, **kwargs):
    return SaeHFLM(pretrained=model, tokenizer=word_tokenizer(), sae=random_sae(WIDTH, HOOK), **kwargs)


@pytest.mark.parametrize("adapters", [1, 2])
def test_each_gets_its_own_answers(model, adapters, monkeypatch):
    """The second thread begins while the first one is in the middle of the model."""
    lms = [adapter(model, splice=splice) for splice in ("reconstruction", "zero")[:adapters]]
    questions = [instances(4), instances(20)]
    expected = [lm.loglikelihood(q) for lm, q in zip([lms[0], lms[-1]], questions, strict=True)]
    lms = [adapter(model, splice=splice) for splice in ("reconstruction", "zero")[:adapters]]
    inside, other_began = threading.Event(), threading.Event()
    forward = type(model).forward

    def slow(self, *args, **kwargs):
        inside.set()
        other_began.wait(0.2)  # until the other one has had its chance to come in between
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", slow)

    def second():
        assert inside.wait(60)
        other_began.set()
        return lms[-1].loglikelihood(questions[1])

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(lms[0].loglikelihood, questions[0]), pool.submit(second)]
        assert [future.result(120) for future in futures] == expected


def test_a_model_has_one_lock_and_no_other_model_has_it(model):
    assert lock_of(model) is lock_of(model)
    assert lock_of(model) is not lock_of(random_model("llama"))
    first, second = adapter(model), adapter(model)
    with first.evaluation():
        taken = []
        thread = threading.Thread(target=lambda: taken.append(lock_of(second.loaded.model).acquire(timeout=0.1)))
        thread.start()
        thread.join()
    assert taken == [False]


def test_a_pass_of_talk_waits_too(model):
    from sae_lm_eval.talk.sampling import running_as

    lm = adapter(model)
    entered = threading.Event()

    def talk():
        with running_as(lm.loaded.model, lm.spliced.variant):
            entered.set()

    with lm.evaluation():
        thread = threading.Thread(target=talk)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(60)
    assert entered.is_set()
