"""The variants of one model that are answered from the same forked pass."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence

import numpy as np

from sae_lm_eval.scoring import Scorer
from sae_lm_eval.walk import Query, Scores

FIELDS = ("logprob", "greedy", "kl")  # sums over the targets; whether all of them are the likeliest


class Together:
    """Answers loglikelihood requests for the baseline and every variant; what was asked before is not run again.

    Answers are kept in a temporary SQLite database, which stays in memory while it is small.
    """

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self._store = sqlite3.connect("", check_same_thread=False)
        self._store.execute("create table answers (asked blob primary key, answer blob) without rowid")

    def answers(self, queries: Sequence[Query], done: Callable[[int, np.ndarray], object]) -> None:
        """Tell `done` of each query's number and answer, float64 (models, FIELDS), in any order."""
        waiting: dict[bytes, list[int]] = {}
        for number, query in enumerate(queries):
            key = _key(query)
            if (known := self._known(key)) is not None:
                done(number, known)
            else:
                waiting.setdefault(key, []).append(number)
        keys = list(waiting)

        def store(index: int, scores: Scores) -> None:
            answer = _summed(scores)
            self._store.execute("insert into answers values (?, ?)", (keys[index], answer.tobytes()))
            for number in waiting[keys[index]]:
                done(number, answer)

        if keys:
            self.scorer.score([queries[waiting[key][0]] for key in keys], store)

    def _known(self, key: bytes) -> np.ndarray | None:
        found = self._store.execute("select answer from answers where asked = ?", (key,)).fetchone()
        return None if found is None else np.frombuffer(found[0]).reshape(-1, len(FIELDS))


def _key(query: Query) -> bytes:
    text = np.asarray([len(query.targets), *query.ids, *query.targets], dtype=np.int64).tobytes()
    return hashlib.blake2b(text, digest_size=16).digest()


def _summed(scores: Scores) -> np.ndarray:
    kl = np.concatenate([[0.0], scores.measures["kl"].sum(1, dtype=np.float64)])
    return np.stack([scores.logprob.sum(1, dtype=np.float64), scores.greedy.all(1), kl], axis=1, dtype=np.float64)
