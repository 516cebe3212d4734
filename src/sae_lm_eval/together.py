"""The variants of one model that are answered from the same forked pass."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sae_lm_eval.scoring import Scorer
from sae_lm_eval.walk import Query, Scores

FIELDS = ("logprob", "greedy", "kl")  # sums over the targets; whether all of them are the likeliest


class Together:
    """Answers loglikelihood requests for the baseline and every variant; what was asked before is not run again.

    Answers are kept in the SQLite file `journal`, written batch by batch, under the `identities` of the models; or
    else in a temporary one, which stays in memory while it is small.
    """

    def __init__(self, scorer: Scorer, journal: Path | None = None, identities: Sequence[str] = ()):
        self.scorer = scorer
        self._store = sqlite3.connect(journal or "", check_same_thread=False)
        self._table = f"answers_{hashlib.sha256(' '.join(identities).encode()).hexdigest()}"
        self._store.execute(f"create table if not exists {self._table} (asked blob primary key, answer blob)")

    def answers(self, queries: Sequence[Query], done: Callable[[int, np.ndarray], object]) -> None:
        """Tell `done` of each query's number and answer, float64 (models, FIELDS), in any order."""
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
                tell(index, answer)

        def store(scored: Mapping[int, Scores]) -> None:
            answers = {index: _summed(scores) for index, scores in scored.items() if index not in known}
            rows = [(keys[index], answer.tobytes()) for index, answer in answers.items()]
            with self._store:
                self._store.executemany(f"insert into {self._table} values (?, ?)", rows)
            for index, answer in answers.items():
                tell(index, answer)

        if len(known) < len(keys):
            self.scorer.score(unique, store, known=known)

    def _known(self, key: bytes) -> np.ndarray | None:
        found = self._store.execute(f"select answer from {self._table} where asked = ?", (key,)).fetchone()
        return None if found is None else np.frombuffer(found[0]).reshape(-1, len(FIELDS))


def _key(query: Query) -> bytes:
    text = np.asarray([len(query.targets), *query.ids, *query.targets], dtype=np.int64).tobytes()
    return hashlib.blake2b(text, digest_size=16).digest()


def _summed(scores: Scores) -> np.ndarray:
    kl = np.concatenate([[0.0], scores.measures["kl"].sum(1, dtype=np.float64)])
    return np.stack([scores.logprob.sum(1, dtype=np.float64), scores.greedy.all(1), kl], axis=1, dtype=np.float64)
