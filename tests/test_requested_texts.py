"""Texts that are asked for one by one are those of the model by itself, whatever else is asked at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest
import torch
from models import CONTEXT, VOCABULARY, WIDTH, random_model, random_sae, word_tokenizer, words

from sae_lm_eval.harness.gathered_requests import GatheredRequests
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.harness.requested_texts import PromptTooLong, TextWriter, WantedText, sampling_arguments
from sae_lm_eval.splicing.attach import attached

SPLICES = {
    "together": {"sae": random_sae(WIDTH, "blocks.1.hook_resid_post")},
    "by transformers": {"sae": [], "splice": "none"},
}
DRAWN = sampling_arguments(temperature=0.9)
PROMPTS = [words(count, seed=count) for count in (3, 9, 21, 1)]


def writer(ends: int | None = None, **arguments) -> TextWriter:
    model = random_model("llama")
    model.generation_config.eos_token_id = ends
    lm = SaeHFLM(pretrained=model, tokenizer=word_tokenizer(adds_bos=True), device="cpu", batch_size=3, **arguments)
    return TextWriter(lm.spliced)


@pytest.fixture(params=SPLICES)
def writes(request) -> TextWriter:
    return writer(**SPLICES[request.param])


@torch.no_grad()
def alone(writes: TextWriter, prompt: str, length: int) -> tuple[list[int], list[torch.Tensor]]:
    """The likeliest tokens one by one, without a cache, and the log-probabilities (vocabulary,) at each."""
    spliced = writes.spliced
    ids, logprobs = spliced.tokens.encode(prompt), []
    start = len(ids)
    while len(ids) - start < length and len(ids) < CONTEXT:
        with attached(spliced.model, spliced.variant):
            logprobs.append(spliced.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1))
        ids.append(int(logprobs[-1].argmax()))
    return ids[start:], logprobs


def text_of(ids: list[int]) -> str:
    """Without special tokens."""
    return " ".join(f"w{i}" for i in ids if i > 2)


def test_texts_of_several_lengths_are_those_of_each_alone(writes):
    requests = [WantedText(prompt, length) for prompt in PROMPTS for length in (7, 1000)]
    for request, written in zip(requests, writes.write(requests), strict=True):
        ids, _ = alone(writes, request.prompt, request.length)
        assert list(written.ids) == ids
        assert written.text == text_of(ids)
        assert written.prompt_tokens == len(request.prompt.split()) + 1
        assert written.ended == ("max_tokens" if request.length == 7 else "model_length")


def test_log_probabilities_are_those_of_a_forward_pass(writes):
    (written,) = writes.write([WantedText(PROMPTS[1], 6, likeliest=4)])
    ids, logprobs = alone(writes, PROMPTS[1], 6)
    assert written.logprobs is not None
    for token, step, expected in zip(ids, written.logprobs, logprobs, strict=True):
        assert step.logprob == pytest.approx(float(expected[token]), abs=1e-4)
        values, likeliest = expected.topk(4)
        assert [token for token, _ in step.likeliest] == likeliest.tolist()
        assert [value for _, value in step.likeliest] == pytest.approx(values.tolist(), abs=1e-4)


def test_the_token_that_was_drawn_has_its_own_log_probability(writes):
    (written,) = writes.write([WantedText(PROMPTS[1], 12, sampling=DRAWN, likeliest=VOCABULARY)])
    for token, step in zip(written.ids, written.logprobs, strict=True):
        assert step.logprob == dict(step.likeliest)[token]
    assert any(token != step.likeliest[0][0] for token, step in zip(written.ids, written.logprobs, strict=True))


def test_a_text_ends_with_what_ends_it(writes):
    ids, _ = alone(writes, PROMPTS[0], 20)
    at = next(i for i in range(4, 20) if ids[i] > 2 and ids[i] not in ids[:i])
    (written,) = writes.write([WantedText(PROMPTS[0], 20, stop=(f"w{ids[at]}", "never"))])
    assert written.ended == "stop"
    assert written.text == text_of(ids[: at + 1])
    ending = writer(
        ends=ids[at], **(SPLICES["together"] if writes.spliced.variant.splices else SPLICES["by transformers"])
    )
    first, second = ending.write([WantedText(PROMPTS[0], 20), WantedText(PROMPTS[2], 5)])
    assert (first.ended, list(first.ids)) == ("stop", ids[: at + 1])
    assert second.ended in ("max_tokens", "stop")


def test_prompts_that_fill_the_context(writes):
    full, longer = words(CONTEXT - 1, seed=0), words(CONTEXT - 2, seed=1)
    short, whole, cut = writes.write([WantedText(PROMPTS[0], 3), WantedText(full, 3), WantedText(longer, 3)])
    assert len(short.ids) == 3
    assert isinstance(whole, PromptTooLong)
    assert str(whole) == f"A prompt of {CONTEXT} tokens leaves no room for a text: the model reads at most {CONTEXT}."
    assert (len(cut.ids), cut.ended) == (1, "model_length")


def test_draws_repeat_with_their_seed_and_differ_where_a_prompt_comes_again(writes):
    requests = [WantedText(PROMPTS[0], 12, sampling=DRAWN, seed=5)] * 2
    first, again = writes.write(requests)
    assert first.ids != again.ids
    other = TextWriter(writes.spliced)
    assert [text.ids for text in other.write(requests)] == [first.ids, again.ids]
    third = TextWriter(writes.spliced).write([WantedText(PROMPTS[0], 12, sampling=DRAWN, seed=6)])
    assert third[0].ids != first.ids


def test_variants_draw_with_the_noise_of_the_baseline():
    """So that texts of equal distributions are equal."""
    unchanged = writer(sae=random_sae(WIDTH, "blocks.1.hook_resid_post"), splice="with_error")
    other = writer(sae=random_sae(WIDTH, "blocks.0.hook_resid_post", seed=3), splice="with_error")
    request = WantedText(PROMPTS[2], 20, sampling=DRAWN, seed=1)
    assert unchanged.write([request])[0].ids == other.write([request])[0].ids


def test_what_only_transformers_can_follow_is_written_by_it():
    plain, penalised = writer(**SPLICES["together"]), writer(**SPLICES["together"])
    penalised.spliced.model.generation_config.repetition_penalty = 30.0
    request = WantedText(PROMPTS[0], 30)
    (twice,), (once,) = plain.write([request]), penalised.write([request])
    assert len(set(twice.ids)) < len(twice.ids)
    assert len(set(once.ids)) == len(once.ids)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("splice", SPLICES.values(), ids=SPLICES)
def test_undefined_logits_are_an_error_of_their_request(splice):
    writes = writer(**splice)
    with torch.no_grad():
        writes.spliced.model.lm_head.weight.fill_(torch.nan)
    (error,) = writes.write([WantedText(PROMPTS[0], 3)])
    assert str(error).startswith("The logits are nan while ")


def test_memory_that_does_not_suffice_halves_the_batch(monkeypatch):
    writes = writer(**SPLICES["by transformers"])
    whole = [text.ids for text in writes.write([WantedText(prompt, 5) for prompt in PROMPTS])]
    plainly, sizes = writes._generated, []

    def generated(request, prompts, key):
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return plainly(request, prompts, key)

    monkeypatch.setattr(writes, "_generated", generated)
    assert [text.ids for text in writes.write([WantedText(prompt, 5) for prompt in PROMPTS])] == whole
    assert sizes == [3, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"do_sample": False}),
        ({"temperature": 0.0, "top_p": 0.9}, {"do_sample": False}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"do_sample": True}, {"do_sample": True}),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": False}),
    ],
)
def test_when_tokens_are_drawn(given, expected):
    assert dict(sampling_arguments(**given)) == expected


class TestGathered:
    def test_what_comes_together_is_answered_together(self):
        batches = []

        def answer(requests):
            batches.append(sorted(requests))
            return [10 * request for request in requests]

        gathered = GatheredRequests(answer, quiet=0.5)
        answers = {}
        threads = [
            threading.Thread(target=lambda i=i: answers.update({i: gathered.ask(i).result(timeout=30)}))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {i: 10 * i for i in range(8)}
        assert batches == [list(range(8))]

    def test_errors_reach_who_asked_and_nobody_else(self):
        def answer(requests):
            if "break" in requests:
                raise RuntimeError("broken")
            return [ValueError(request) if request == "bad" else request for request in requests]

        gathered = GatheredRequests(answer, quiet=0.2)
        good, bad = gathered.ask("good"), gathered.ask("bad")
        assert good.result(timeout=30) == "good"
        with pytest.raises(ValueError, match="bad"):
            bad.result(timeout=30)
        with pytest.raises(RuntimeError, match="broken"):
            gathered.ask("break").result(timeout=30)
        assert gathered.ask("again").result(timeout=30) == "again"

    def test_what_is_cancelled_is_not_answered(self):
        answered = []
        gathered = GatheredRequests(lambda requests: answered.extend(requests) or requests, quiet=0.3)
        first, second = gathered.ask(1), gathered.ask(2)
        assert first.cancel()
        assert second.result(timeout=30) == 2
        with pytest.raises(CancelledError):
            first.result()
        assert answered == [2]

    def test_after_it_is_closed_it_begins_anew(self):
        gathered = GatheredRequests(lambda requests: requests, quiet=0.05)
        future = gathered.ask(1)
        gathered.close()
        gathered.close()
        assert future.result(timeout=0) == 1
        assert gathered.ask(2).result(timeout=30) == 2
