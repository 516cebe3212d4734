"""What a spliced model answers to sequences of which the last tokens are scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sae_lm_eval.scoring.request import Query

TOKENS_AT_ONCE = 2**18  # whose scores are held; what lies beyond is scored after these


@dataclass(frozen=True)
class Answers:
    """To each query, float64 (queries,): the log-probability of its targets in nats, whether each of them is the
    likeliest token, KL(baseline || model) summed over them in nats (None where it was not taken), and their number."""

    logprob: np.ndarray
    greedy: np.ndarray
    kl: np.ndarray | None
    targets: np.ndarray

    @classmethod
    def plain(cls, pairs: Sequence[tuple[float, bool]], targets: Sequence[int]) -> Answers:
        """As lm_eval has them, without KL."""
        logprob, greedy = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return cls(logprob, greedy, None, np.asarray(targets, dtype=np.float64))

    @property
    def pairs(self) -> list[tuple[float, bool]]:
        """As lm_eval has them."""
        return list(zip(self.logprob.tolist(), self.greedy.astype(bool).tolist(), strict=True))

    @property
    def divergences(self) -> list[tuple[float, int]] | None:
        """The sum of KL and the number of tokens, for each query."""
        if self.kl is None:
            return None
        return list(zip(self.kl.tolist(), self.targets.astype(int).tolist(), strict=True))


def portions(queries: Sequence[Query], tasks: Sequence[str | None]) -> Iterator[list[int]]:
    """Numbers of queries that are run together: of one task, and not more than are held."""
    by_task: dict[str | None, list[int]] = defaultdict(list)
    for number, task in enumerate(tasks or [None] * len(queries)):
        by_task[task].append(number)
    for numbers in by_task.values():
        targets = np.cumsum([len(queries[number].targets) for number in numbers])
        ends = np.flatnonzero(np.diff(targets // TOKENS_AT_ONCE)) + 1
        yield from (portion.tolist() for portion in np.split(np.asarray(numbers), ends))
