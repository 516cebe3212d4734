"""What is to be scored, as one value, and the scores that come back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int

from sae_lm_eval.splicing.attach import SpliceWatch
from sae_lm_eval.splicing.prompt_labels import prompt_labels
from sae_lm_eval.splicing.special_tokens import spliced_positions
from sae_lm_eval.splicing.splice import Context


@dataclass(frozen=True)
class Query:
    """The ids that the model reads; its last `len(targets)` positions predict the targets.

    `labels` of the ids are what a variant may choose its positions by; none are zeros.
    """

    ids: Sequence[int]
    targets: Sequence[int]
    labels: Sequence[int] | np.ndarray = ()

    @classmethod
    def from_context(
        cls, context: Sequence[int], continuation: Sequence[int], longest: int, header: int | None = None
    ) -> Query:
        """What scores `continuation` behind as much of `context` as `longest` tokens hold.

        With the length of the context's few-shot `header` its labels are those of `prompt_labels`.
        """
        whole = [*context, *continuation]
        ids = whole[-(longest + 1) :][:-1]
        if header is None:
            return cls(ids, continuation)
        read = range(len(whole) - 1 - len(ids), len(whole) - 1)
        return cls(ids, continuation, prompt_labels(read, header=header, prompt=len(context)))

    def spliced(self, special_ids: Collection[int], first_position: int) -> Bool[np.ndarray, " ids"]:
        """At which of the ids a dictionary is spliced in."""
        ids = torch.as_tensor(np.asarray(self.ids))
        return spliced_positions(ids, torch.arange(len(ids)), special_ids, first_position).numpy()


@dataclass(frozen=True)
class Scores:
    """Of one query.

    `logprob` is the target's, in nats, and `greedy`, if it was requested, is 1 where the target is the likeliest token,
    the baseline first; `measures` compare variants with the baseline.
    """

    logprob: Float32[np.ndarray, "models targets"]
    greedy: Float32[np.ndarray, "models targets"] | None
    measures: dict[str, Float32[np.ndarray, "compared targets"]]


class TargetIndex(NamedTuple):
    """Where a batch predicts which targets; sorted by position.

    `positions` are indices among rows x length, ascending, each listed once. For every target `place` is the index of
    its position in `positions`, `tokens` its id, and `columns` its column in the tables of scores. Several queries may
    have a target at one position.
    """

    positions: Int[np.ndarray, " positions"]
    place: Int[np.ndarray, " targets"]
    tokens: Int[np.ndarray, " targets"]
    columns: Int[np.ndarray, " targets"]

    @classmethod
    def joined(cls, parts: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> TargetIndex:
        """From the position, token and column of each target, (targets,), query by query."""
        every_position, tokens, columns = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        positions, place = np.unique(every_position, return_inverse=True)
        order = np.argsort(place, kind="stable")
        return cls(positions, place[order], tokens[order], columns[order])


@runtime_checkable
class Watch(Protocol):
    """Sees what passes the splices of the first variant, batch by batch."""

    def batch(
        self, context: Context, targets: TargetIndex, queries: Int[np.ndarray, " targets"]
    ) -> AbstractContextManager[SpliceWatch]:
        """A scope around one batch; `queries` are the numbers of the queries that the targets are of.

        Where the scope is left by an exception the batch does not count: one that memory does not suffice for is run
        again in parts.
        """
        ...


@dataclass(frozen=True)
class ScoreRequest:
    """Queries, and what of them is wanted.

    `measures`, names of `divergences.MEASURES`, compare the first `compared` variants with the baseline, None being
    all of them. `greedy` is whether the likeliest token is looked for. `watch` sees the first variant. `answered` are
    the numbers of queries whose scores the caller has: what runs together does not depend on them, so that neither do
    the scores of the others; where all that runs together is answered, it is left out.

    Raises `ValueError` where a query has no target, or more targets than positions.
    """

    queries: Sequence[Query]
    measures: Sequence[str] = ("kl",)
    greedy: bool = True
    answered: Collection[int] = ()
    compared: int | None = None
    watch: Watch | None = None

    def __post_init__(self) -> None:
        for query in self.queries:
            if not 0 < len(query.targets) <= len(query.ids):
                raise ValueError(f"{len(query.targets)} targets cannot be asked of {len(query.ids)} positions")

    @cached_property
    def radix(self) -> int:
        """One above the largest id where there are labels, else 0."""
        if not any(len(query.labels) for query in self.queries):
            return 0
        return 1 + max(max(query.ids) for query in self.queries)

    def codes(self) -> list[Sequence[int]]:
        """Of each query what is run: its ids, or id + label * radix, so that tokens of unlike labels are not shared."""
        if not self.radix:
            return [query.ids for query in self.queries]
        return [self._coded(query) if len(query.labels) else query.ids for query in self.queries]

    def _coded(self, query: Query) -> list[int]:
        ids, labels = (np.asarray(values, dtype=np.int64) for values in (query.ids, query.labels))
        return (ids + labels * self.radix).tolist()
