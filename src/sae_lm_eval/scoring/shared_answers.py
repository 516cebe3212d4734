"""The variants of one model that are answered from the same forked pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring.executor import Query, Scores
from sae_lm_eval.scoring.scorer import Scorer

FIELDS = ("logprob", "greedy", "kl")  # sums over the targets; whether all of them are the likeliest


class Together:
    """Answers loglikelihood requests for the baseline and every variant; what was asked before is not run again.

    Answers are kept in `journal`, batch by batch, under the `identities` of the models.
    """

    def __init__(self, scorer: Scorer, journal: Journal | None = None, identities: Sequence[str] = ()):
        self.scorer = scorer
        self.tokenised: list[Any] = []  # the requests asked last, as lm_eval has them with their tokens
        self.journal = journal or Journal()
        self._models = hashlib.sha256(" ".join(identities).encode()).hexdigest()

    def answers(
        self,
        queries: Sequence[Query],
        done: Callable[[int, np.ndarray], object],
        recalled: Callable[[int], object] = lambda _number: None,
    ) -> None:
        """Tell `done` of each query's number and answer, float64 (models, FIELDS), in any order.

        `recalled` is told before `done` of those that were answered before.
        """
        numbers: dict[bytes, list[int]] = {}
        for number, query in enumerate(queries):
            numbers.setdefault(_key(query), []).append(number)
        keys = list(numbers)
        unique = [queries[numbers[key][0]] for key in keys]

        def tell(index: int, answer: np.ndarray) -> None:
            for number in numbers[keys[index]]:
                done(number, answer)

        known = set()
        for index, key in enumerate(keys):
            if (answer := self._known(key)) is not None:
                known.add(index)
                for number in numbers[key]:
                    recalled(number)
                tell(index, answer)

        def store(scored: Mapping[int, Scores]) -> None:
            answers = {index: _summed(scores) for index, scores in scored.items() if index not in known}
            self.journal.put(self._models, {keys[index]: answer.tobytes() for index, answer in answers.items()})
            for index, answer in answers.items():
                tell(index, answer)

        if len(known) < len(keys):
            self.scorer.score(unique, store, known=known)

    def _known(self, key: bytes) -> np.ndarray | None:
        found = self.journal.get(self._models, key)
        return None if found is None else np.frombuffer(found).reshape(-1, len(FIELDS))


def _key(query: Query) -> bytes:
    text = np.asarray([len(query.targets), *query.ids, *query.targets], dtype=np.int64).tobytes()
    return hashlib.blake2b(text, digest_size=16).digest()


def _summed(scores: Scores) -> np.ndarray:
    assert scores.greedy is not None
    kl = np.concatenate([[0.0], scores.measures["kl"].sum(1, dtype=np.float64)])
    return np.stack([scores.logprob.sum(1, dtype=np.float64), scores.greedy.all(1), kl], axis=1, dtype=np.float64)
