"""Prompts of one spliced model, each with its own settings -> texts, those of equal settings in one batch.

What writes the texts of several models at once writes them where it can, and transformers' `generate` elsewhere.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from sae_lm_eval.errors import UserError, shortened
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.harness.generation import drawing, stop_check
from sae_lm_eval.scoring.drafts import Ending
from sae_lm_eval.scoring.generation import UnsharedError, end_ids, sampling_of
from sae_lm_eval.scoring.shared_texts import SharedTexts
from sae_lm_eval.scoring.spliced_model import SplicedModel
from sae_lm_eval.scoring.token_sampler import TokenSampler

logger = logger_of(__name__)


@dataclass(frozen=True)
class WantedText:
    """A prompt, and how its text is written.

    Args:
        prompt: as text; special tokens are added as the spliced model adds them.
        length: the most tokens of the text, which ends before that where the model's context is full.
        stop: texts with which it ends; they stay in it.
        sampling: arguments of transformers' `generate` by name.
        seed: of what is drawn. The same prompt, asked again of the same `TextWriter`, is another draw.
        likeliest: how many of the likeliest tokens are told at each step with their log-probabilities; None is
            without any.
    """

    prompt: str
    length: int
    stop: tuple[str, ...] = ()
    sampling: tuple[tuple[str, Any], ...] = (("do_sample", False),)
    seed: int = 0
    likeliest: int | None = None

    @property
    def settings(self) -> tuple[Any, ...]:
        """What the requests of a batch have in common."""
        return self.length, self.stop, self.sampling, self.seed, self.likeliest


@dataclass(frozen=True)
class StepLogprobs:
    """The log-probability (nats) of the token that was written, and the likeliest tokens with theirs."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class WrittenText:
    """What was written behind a prompt of `prompt_tokens`; `ids` hold the token that ended it.

    `ended` is "stop" at an end of text or one of the request's, "max_tokens" behind as many as were asked for, and
    "model_length" where the context is full.
    """

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    ended: str
    logprobs: tuple[StepLogprobs, ...] | None = None


class PromptTooLong(UserError):
    """A prompt leaves no room for a text in the model's context."""


@dataclass(frozen=True)
class WatchedSampler(TokenSampler):
    """Chooses as a `TokenSampler` does, and keeps the log-probabilities of each step by key."""

    likeliest: int = 1
    steps: dict[bytes, dict[int, StepLogprobs]] = field(default_factory=dict)

    def choose(self, logits: Tensor, keys: Sequence[bytes], steps: Sequence[int]) -> Tensor:
        chosen = super().choose(logits, keys, steps)
        for key, step, logprobs in zip(keys, steps, step_logprobs(logits, chosen, self.likeliest), strict=True):
            self.steps.setdefault(key, {})[step] = logprobs
        return chosen


def step_logprobs(logits: Tensor, chosen: Tensor, likeliest: int) -> list[StepLogprobs]:
    """Of each row of logits (rows, vocabulary), for the token that was chosen there (rows,)."""
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(min(likeliest, logits.shape[-1]))
    own = logprobs.gather(-1, chosen[:, None].to(logprobs.device))[:, 0]
    rows = zip(own.tolist(), ids.tolist(), values.tolist(), strict=True)
    return [StepLogprobs(logprob, tuple(zip(of_row, at, strict=True))) for logprob, of_row, at in rows]


class TextWriter:
    """Writes what a spliced model says; `provenance` is what the texts that were written last come from.

    Args:
        spliced: the model with its variant.
    """

    def __init__(self, spliced: SplicedModel) -> None:
        self.spliced = spliced
        self._identity, self.provenance = "", dict[str, Any]()
        self._tell()
        self.rows = spliced.loaded.settings.texts_at_once  # of a batch of transformers'
        self._asked: Counter[str] = Counter()

    def write(self, requests: Sequence[WantedText]) -> list[WrittenText | BaseException]:
        """A text for each request, or the `UserError` that it ends with: a prompt too long, or logits that are nan."""
        out: list[WrittenText | BaseException] = [UserError("No text was written.")] * len(requests)
        with self.spliced.evaluation():
            self._tell()
            batches: dict[tuple[Any, ...], list[int]] = defaultdict(list)
            prompts = [self._encode(request.prompt) for request in requests]
            for number, (request, ids) in enumerate(zip(requests, prompts, strict=True)):
                if len(ids) < self.spliced.max_length:
                    batches[request.settings].append(number)
                else:
                    out[number] = PromptTooLong(
                        f"A prompt of {len(ids):,} tokens leaves no room for a text: the model reads at most "
                        f"{self.spliced.max_length:,}."
                    )
            for numbers in batches.values():
                batch = [requests[number] for number in numbers]
                for number, text in self._batch(batch, [prompts[number] for number in numbers]):
                    out[numbers[number]] = text
        return out

    def _tell(self) -> None:
        if (identity := self.spliced.identity()) != self._identity:
            self._identity, self.provenance = identity, {**self.spliced.provenance(), "identity": identity}

    def _encode(self, prompt: str) -> list[int]:
        tokens = self.spliced.tokens
        return tokens.encode(prompt) or [tokens.prefix_token_id]

    def _batch(
        self, requests: Sequence[WantedText], prompts: Sequence[Sequence[int]]
    ) -> list[tuple[int, WrittenText | UserError]]:
        """The number of each request, whose settings are equal, with its text."""
        keys = [self._key(request.prompt) for request in requests]
        shared, loaded = self.spliced.group.texts(), self.spliced.loaded
        with loaded.autocast():
            if shared is not None and shared.place(self.spliced.identity()) is not None:
                try:
                    return list(self._together(shared, requests[0], prompts, keys))
                except UnsharedError as error:
                    words = f"Texts are generated by transformers: {error}."
                    loaded.say_once(words, words)
            return list(self._plainly(requests[0], prompts, keys))

    def _key(self, prompt: str) -> bytes:
        """Of a prompt, with how often it has come before."""
        key = f"{self._asked[prompt]} {prompt}"
        self._asked[prompt] += 1
        return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()

    # -- in the batches of the shared decoder -------------------------------------------------------------

    def _together(
        self, shared: SharedTexts, request: WantedText, prompts: Sequence[Sequence[int]], keys: Sequence[bytes]
    ) -> Iterator[tuple[int, WrittenText | UserError]]:
        """Raises `UnsharedError` where only transformers can follow the request's settings."""
        sampler, ends = sampling_of(self.spliced.loaded.model, dict(request.sampling))
        if request.likeliest is None:
            sampler, steps_of = TokenSampler(sampler.warped, request.seed), None
        else:
            sampler = WatchedSampler(sampler.warped, request.seed, max(1, request.likeliest))
            steps_of = sampler.steps
        ending = Ending(request.length, ends, self._stops(request))
        texts: dict[int, list[int] | None] = {}
        shared.decoder.generate(
            prompts, ending, lambda number, _model, ids: texts.update({number: ids}), sampling=sampler, keys=keys
        )
        for number, ids in texts.items():
            if ids is None:
                yield number, self._undefined(prompts[number])
                continue
            ended = "stop" if ids[-1] in ends or ending.stopped(ids) else self._cut(ids, request)
            steps = None if steps_of is None else [steps_of[keys[number]][i] for i in range(len(ids))]
            yield number, self._text(prompts[number], ids, ended, steps)

    def _stops(self, request: WantedText) -> Callable[[Sequence[int]], bool]:
        return stop_check(self.spliced.tokens.tokenizer, request.stop) if request.stop else Ending.stopped

    def _cut(self, ids: Sequence[int], request: WantedText) -> str:
        return "max_tokens" if len(ids) >= request.length else "model_length"

    def _undefined(self, prompt: Sequence[int]) -> UserError:
        words = shortened(self.spliced.tokens.tokenizer.decode(prompt, skip_special_tokens=True))
        return UserError(f"The logits are nan while '{self.spliced.name}' generates from {words}.")

    def _text(
        self, prompt: Sequence[int], ids: Sequence[int], ended: str, steps: Sequence[StepLogprobs] | None
    ) -> WrittenText:
        decode = self.spliced.tokens.tokenizer.decode
        text = decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return WrittenText(text, tuple(ids), len(prompt), ended, None if steps is None else tuple(steps))

    # -- by transformers ----------------------------------------------------------------------------------

    def _plainly(
        self, request: WantedText, prompts: Sequence[Sequence[int]], keys: Sequence[bytes]
    ) -> Iterator[tuple[int, WrittenText | UserError]]:
        start = 0
        while start < len(prompts):
            stop = min(start + self.rows, len(prompts))
            try:
                texts = self._generated(request, prompts[start:stop], keys[start])
            except Exception as error:
                if stop - start < 2 or not should_reduce_batch_size(error):
                    raise
                self.rows = (stop - start) // 2
                logger.warning("Out of memory: continuing with %d texts at once.", self.rows)
                continue
            yield from enumerate(texts, start)
            start = stop

    def _generated(
        self, request: WantedText, prompts: Sequence[Sequence[int]], key: bytes
    ) -> Sequence[WrittenText | UserError]:
        """The texts of a batch, padded on the left, by the model's own `generate`."""
        tokenizer, loaded = self.spliced.tokens.tokenizer, self.spliced.loaded
        longest = max(map(len, prompts))
        pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
        ids = torch.tensor([[pad] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=loaded.device)
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=loaded.device
        )
        ends = RowEnds(
            [min(request.length, self.spliced.max_length - len(prompt)) for prompt in prompts],
            longest,
            end_ids(loaded.model.generation_config),
            self._stops(request),
        )
        try:
            with (
                drawing(b"%d %s" % (request.seed, key), loaded.device.type),
                torch.no_grad(),
                self.spliced.generating(ids),
            ):
                out = loaded.wrapped.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max(ends.rooms),
                    pad_token_id=pad,
                    stopping_criteria=StoppingCriteriaList([ends]),
                    output_logits=request.likeliest is not None,
                    return_dict_in_generate=True,
                    **dict(request.sampling),
                )
        except UserError as error:
            return [error] * len(prompts)
        written = out.sequences[:, longest:]
        texts = []
        for row, (prompt, length) in enumerate(zip(prompts, ends.lengths, strict=True)):
            own = written[row, :length]
            ended = "stop" if ends.stopped[row] else self._cut(own, request)
            steps = None
            if request.likeliest is not None:
                logits = torch.stack([step[row] for step in out.logits[:length]])
                steps = step_logprobs(logits, own, max(1, request.likeliest))
            texts.append(self._text(prompt, own.tolist(), ended, steps))
        return texts


class RowEnds(StoppingCriteria):
    """Where each text of a batch ends: with one of `ids`, where `stopped` says so of its tokens, or for want of room.

    Args:
        rooms: the most tokens of each row's text.
        prompt: the tokens before the texts, padding included.
        ids, stopped: see `Ending`.
    """

    def __init__(
        self, rooms: Sequence[int], prompt: int, ids: frozenset[int], stopped: Callable[[Sequence[int]], bool]
    ) -> None:
        self.rooms, self.prompt, self.ids, self._stopped = list(rooms), prompt, ids, stopped
        self.lengths, self.stopped = list(rooms), [False] * len(rooms)
        self._done = np.zeros(len(rooms), dtype=bool)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        texts = input_ids[:, self.prompt :].tolist()
        for row, text in enumerate(texts):
            if not self._done[row]:
                stopped = text[-1] in self.ids or self._stopped(text)
                if stopped or len(text) >= self.rooms[row]:
                    self._done[row], self.stopped[row], self.lengths[row] = True, stopped, len(text)
        return torch.from_numpy(self._done).to(input_ids.device)


def sampling_arguments(
    *,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
) -> tuple[tuple[str, Any], ...]:
    """Arguments of transformers' `generate`: tokens are drawn if `do_sample`, or by default if anything else is given.

    Temperature 0 takes the likeliest token.
    """
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given = {name: value for name, value in given.items() if value is not None}
    draws = temperature != 0 and (bool(given) if do_sample is None else do_sample)
    return tuple(({"do_sample": draws} | (given if draws else {})).items())
