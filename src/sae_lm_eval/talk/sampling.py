"""Baseline and variants writing in turns, a token each, from the same noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.runtime.model_lock import lock_of
from sae_lm_eval.scoring.token_sampler import gumbel
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


@dataclass
class Continuation:
    """What a column has written after a prompt, the token that ended it included; `ended` is None before the end."""

    column: AnswerColumn
    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    ended: str | None = None
    cache: Any = None


def generate(
    model: nn.Module,
    columns: Sequence[AnswerColumn],
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    stop_ids: frozenset[int],
    context: int,
) -> Iterator[list[Continuation]]:
    """A token more for every column at each turn, until all have ended, at one of `stop_ids` or for want of room.

    The next token is argmax(logits / temperature + g), g Gumbel noise of the vocabulary's size that is the same for
    all columns at a turn: each column samples its own softmax, and equal distributions give equal tokens (Gumbel-max;
    Maddison, Tarlow & Minka 2014).

    Raises `UserError` for a prompt that leaves no room in `context`, and for logits that are nan.
    """
    for prompt in prompts:
        if len(prompt) >= context:
            raise UserError(f"The prompt is {len(prompt):,} tokens long, and the model reads at most {context:,}.")
    texts = [Continuation(column, list(prompt)) for column, prompt in zip(columns, prompts, strict=True)]
    generator = torch.Generator().manual_seed(sampling.seed)
    while any(text.ended is None for text in texts):
        noise = None
        for text in texts:
            if text.ended is not None:
                continue
            logits = next_logits(model, text)
            if sampling.temperature and noise is None:
                noise = gumbel(logits.shape[-1], generator)
            text.ids.append(_choose(logits, sampling.temperature, noise))
            text.ended = _end(text, sampling, stop_ids, context)
        yield texts


@contextmanager
def running_as(model: nn.Module, variant: Variant | None) -> Iterator[None]:
    """A scope in which `model` runs as `variant`, or as it is; other threads that ask the same model wait."""
    with lock_of(model), nullcontext() if variant is None else attached(model, variant):
        yield


@torch.no_grad()
def next_logits(model: nn.Module, text: Continuation) -> Tensor:
    """Logits (vocabulary,) of what follows; reads what its cache has not, or all where decoding cannot be cached."""
    variant = text.column.variant
    cached = variant is None or not variant.needs_whole_text
    ids = text.ids[-1:] if text.cache is not None else text.prompt + text.ids
    device = next(model.parameters()).device
    with running_as(model, variant):
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
        raise UserError(f"The logits of '{text.column.name}' are nan after {len(text.ids)} tokens.")
    return logits


def _choose(logits: Tensor, temperature: float, noise: Tensor | None) -> int:
    return int((logits if noise is None else logits / temperature + noise.to(logits.device)).argmax())


def _end(text: Continuation, sampling: Sampling, stop_ids: frozenset[int], context: int) -> str | None:
    if text.ids[-1] in stop_ids:
        return "end of text"
    if len(text.ids) >= sampling.max_new_tokens:
        return f"{sampling.max_new_tokens} tokens"
    if len(text.prompt) + len(text.ids) >= context:
        return f"the context of {context} tokens is full"
    return None
