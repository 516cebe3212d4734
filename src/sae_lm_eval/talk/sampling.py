"""Baseline and variants writing side by side, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.runtime.model_lock import lock_of
from sae_lm_eval.scoring.decoding import Decoder
from sae_lm_eval.scoring.drafts import Ending
from sae_lm_eval.scoring.loaded_model import LoadedModel
from sae_lm_eval.scoring.shared_texts import decoder_of
from sae_lm_eval.scoring.token_sampler import TokenSampler
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.module_io import keeping_last
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.talk.chosen import Sampling

BASELINE = "baseline"


@dataclass(frozen=True)
class AnswerColumn:
    """The model as it answers: untouched where `variant` is None."""

    name: str
    variant: Variant | None = None

    @property
    def needs_whole_text(self) -> bool:
        """Whether it reads the whole text anew for each token."""
        return self.variant is not None and self.variant.needs_whole_text


@dataclass
class Continuation:
    """What a column has written after a prompt, the token that ended it included; `ended` is None before the end."""

    column: AnswerColumn
    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    ended: str | None = None
    cache: Any = None


class Writers:
    """Baseline and variants of a loaded model, which write together in one batch.

    Columns that read the whole text anew for each token, and all columns of a model that cannot decode several at
    once (which is said), write behind the others, each by itself.
    """

    def __init__(self, loaded: LoadedModel, columns: Sequence[AnswerColumn]) -> None:
        self.loaded, self.columns = loaded, list(columns)
        self._together = [column for column in columns if not column.needs_whole_text]
        self._decoder: Decoder | None = None
        with lock_of(loaded.model):
            self._decoder = decoder_of(
                loaded, [column.variant for column in self._together], prompts=len(self._together)
            )
        if self._decoder is None:
            self._together = []

    def write(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        stop_ids: frozenset[int],
        watch: Callable[[list[Continuation]], bool] = lambda _texts: True,
    ) -> list[Continuation]:
        """What each column writes behind its prompt until one of `stop_ids`, or for want of room.

        The next token is argmax(logits / temperature + g), g Gumbel noise of the vocabulary's size that is the same for
        all columns at a turn: each column samples its own softmax, and equal distributions give equal tokens
        (Gumbel-max; Maddison, Tarlow & Minka 2014). `watch` is told of the texts so far at each turn, and says
        whether to go on.

        Raises `UserError` for a prompt that leaves no room in the context, and for logits that are nan.
        """
        context = self.loaded.settings.max_length
        for prompt in prompts:
            if len(prompt) >= context:
                raise UserError(f"The prompt is {len(prompt):,} tokens long, and the model reads at most {context:,}.")
        texts = [Continuation(column, list(prompt)) for column, prompt in zip(self.columns, prompts, strict=True)]
        drawing = (lambda logits: logits.float() / sampling.temperature) if sampling.temperature else None
        sampler = TokenSampler(drawing, sampling.seed)

        def grow(tokens: Sequence[tuple[Continuation, int]]) -> None:
            for text, token in tokens:
                text.ids.append(token)
                text.ended = _end(text, sampling, stop_ids, context)
            if not watch(texts):
                raise _Interrupted

        try:
            with lock_of(self.loaded.model), self.loaded.autocast():
                self._write_together(texts, sampling, sampler, stop_ids, grow)
                while left := [text for text in texts if text.ended is None]:
                    logits = [next_logits(self.loaded.model, text) for text in left]
                    steps = [len(text.ids) for text in left]
                    grow(
                        list(
                            zip(
                                left,
                                sampler.choose(torch.stack(logits), [b""] * len(left), steps).tolist(),
                                strict=True,
                            )
                        )
                    )
        except _Interrupted:
            pass
        return texts

    def _write_together(
        self,
        texts: Sequence[Continuation],
        sampling: Sampling,
        sampler: TokenSampler,
        stop_ids: frozenset[int],
        grow: Callable[[Sequence[tuple[Continuation, int]]], None],
    ) -> None:
        if self._decoder is None:
            return
        columns = self._together
        by_model = [next(text for text in texts if text.column is column) for column in columns]
        prompts = list(dict.fromkeys(tuple(text.prompt) for text in by_model))
        wanted = {(prompts.index(tuple(text.prompt)), model) for model, text in enumerate(by_model)}
        others = {(i, model) for i in range(len(prompts)) for model in range(len(columns))} - wanted

        def done(_prompt: int, model: int, ids: list[int] | None) -> None:
            if ids is None:
                raise _undefined(by_model[model])

        self._decoder.generate(
            prompts,
            Ending(sampling.max_new_tokens, stop_ids),
            done,
            sampling=sampler,
            finished=others,
            wrote=lambda step: grow([(by_model[model], token) for _, model, token in step]),
        )


class _Interrupted(Exception):
    """Writing was to go no further."""


@contextmanager
def running_as(model: nn.Module, variant: Variant | None, prompt: int | None = None) -> Iterator[None]:
    """A scope in which `model` runs as `variant`, or as it is, of whose text the first `prompt` tokens are the prompt;
    other threads that ask the same model wait.
    """
    with lock_of(model), nullcontext() if variant is None else attached(model, variant, prompt):
        yield


@torch.no_grad()
def next_logits(model: nn.Module, text: Continuation) -> Tensor:
    """Logits (vocabulary,) of what follows; reads what its cache has not, or all where decoding cannot be cached."""
    cached = not text.column.needs_whole_text
    ids = text.ids[-1:] if text.cache is not None else text.prompt + text.ids
    device = next(model.parameters()).device
    with running_as(model, text.column.variant, len(text.prompt)):
        out = model(
            input_ids=torch.tensor([ids], device=device),
            past_key_values=text.cache,
            use_cache=cached,
            **keeping_last(model, 1),
        )
    if cached:
        text.cache = out.past_key_values
    logits = out.logits[0, -1].float()
    if bool(logits.isnan().any()):
        raise _undefined(text)
    return logits


def _undefined(text: Continuation) -> UserError:
    return UserError(f"The logits of '{text.column.name}' are nan after {len(text.ids)} tokens.")


def _end(text: Continuation, sampling: Sampling, stop_ids: frozenset[int], context: int) -> str | None:
    if text.ids[-1] in stop_ids:
        return "end of text"
    if len(text.ids) >= sampling.max_new_tokens:
        return f"{sampling.max_new_tokens} tokens"
    if len(text.prompt) + len(text.ids) >= context:
        return f"the context of {context} tokens is full"
    return None
