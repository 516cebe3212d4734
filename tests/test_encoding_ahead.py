"""Texts encoded in batches have the ids that lm_eval gives them one by one."""

from __future__ import annotations

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from models import WIDTH, random_model, random_sae, word_tokenizer, words

from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.scoring import encoding_ahead
from sae_lm_eval.scoring.encoding_ahead import EncodingAhead, texts_of_pairs


def pairs():
    header = words(20, seed=0)
    plain = [(f"{header} {words(4, seed=i // 3)}", " " + words(2, seed=100 + i)) for i in range(12)]
    odd = [("", words(3, seed=1)), ("w7  ", "w8"), ("<s> w9 w10", " w11"), (" w5", ""), ("w5 ", " w6"), *plain[:2]]
    return [*plain, *odd]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("add_bos_token", [None, False, True])
@pytest.mark.parametrize("at_once", [1, 3, 512])
def test_pairs_are_encoded_as_lm_eval_encodes_them(adds_bos, add_bos_token, at_once, monkeypatch):
    monkeypatch.setattr(encoding_ahead, "TEXTS_AT_ONCE", at_once)
    options = {"tokenizer": word_tokenizer(adds_bos=adds_bos), "add_bos_token": add_bos_token, "device": "cpu"}
    plain = HFLM(pretrained=random_model("llama"), **options)
    lm = SaeHFLM(pretrained=random_model("llama"), sae=random_sae(WIDTH, "blocks.1.hook_resid_post"), **options)
    requested = []
    monkeypatch.setattr(plain, "_loglikelihood_tokens", lambda requests, **_: requested.extend(requests))
    plain.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs()], disable_tqdm=True)
    assert lm.spliced.tokens.pairs(pairs()) == [tuple(ids) for _, *ids in requested]
    assert [lm.tok_encode(text) for pair in pairs() for text in pair] == [
        plain.tok_encode(text) for pair in pairs() for text in pair
    ]


def test_each_text_is_encoded_once_and_a_batch_at_a_time():
    calls = []

    def encode(texts):
        calls.append(list(texts))
        return [[len(text)] for text in texts]

    questions = [(f"question {i // 4}", f" {i}") for i in range(600)]
    ahead = EncodingAhead(texts_of_pairs(questions), encode)
    for context, continuation in questions:
        assert ahead.get(context + continuation) == [len(context + continuation)]
        assert ahead.get(context) == [len(context)]
    assert len(calls) == 3
    assert all(len(texts) == len(set(texts)) for texts in calls)


def test_a_text_that_does_not_come_next_is_not_known():
    ahead = EncodingAhead(["a", "b"], lambda texts: [[ord(text)] for text in texts])
    assert ahead.get("a") == [97]
    assert ahead.get("z") is None
