"""Texts that are being written: where they end, how far they are, and the prompts that they arrive with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sae_lm_eval.scoring.prefill import Prefilled


@dataclass(frozen=True)
class Ending:
    """Where a text ends: behind `length` tokens, with one of `ids`, or where `stopped` says so of its tokens.

    It ends before that where prompt and text are as long as the decoder's limit.
    """

    length: int
    ids: frozenset[int] = frozenset()
    stopped: Callable[[Sequence[int]], bool] = lambda _ids: False

    def reached(self, ids: Sequence[int]) -> bool:
        return len(ids) >= self.length or ids[-1] in self.ids or self.stopped(ids)


@dataclass
class Draft:
    """A text that a model is writing: what it reads next and at which position, and its tokens so far."""

    prompt: int
    model: int
    position: int
    reads: int
    beginning: int  # the number of the shared one that its rows attend to
    ids: list[int] = field(default_factory=list)
    has_ended: bool = False


class Arrival(NamedTuple):
    """A prompt's number with the tokens of a text that is begun, the models that have run it, and what that left."""

    beginning: tuple[int, ...]
    models: tuple[int, ...]
    prompt: Prefilled
