"""The variants of one model that are answered from the same forked pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring.loaded_model import LoadedModel
from sae_lm_eval.scoring.request import Query, ScoreRequest, Scores
from sae_lm_eval.scoring.scorer import Scorer

logger = logger_of(__name__)

FIELDS = ("logprob", "greedy", "kl")  # sums over the targets; whether all of them are the likeliest


class SharedAnswers:
    """Answers loglikelihood requests for the baseline and every variant; none of them is run twice.

    Answers are kept in `journal`, batch by batch, under the `identities` of the models.
    """

    def __init__(self, scorer: Scorer, journal: Journal | None = None, identities: Sequence[str] = ()):
        self.scorer = scorer
        self.journal = journal or Journal()
        self._models = hashlib.sha256(" ".join(identities).encode()).hexdigest()

    def answers(
        self,
        queries: Sequence[Query],
        deliver: Callable[[int, np.ndarray], object],
        recalled: Callable[[int], object] = lambda _number: None,
    ) -> None:
        """Give `deliver` each query's number and answer, float64 (models, FIELDS), in any order.

        Of those that the journal has, `recalled` is given the number before.
        """
        numbers: dict[bytes, list[int]] = {}
        for number, query in enumerate(queries):
            numbers.setdefault(_key(query), []).append(number)
        keys = list(numbers)
        unique = [queries[numbers[key][0]] for key in keys]

        def deliver_all(index: int, answer: np.ndarray) -> None:
            for number in numbers[keys[index]]:
                deliver(number, answer)

        answered = set()
        for index, key in enumerate(keys):
            if (answer := self._kept(key)) is not None:
                answered.add(index)
                for number in numbers[key]:
                    recalled(number)
                deliver_all(index, answer)

        def store(scored: Mapping[int, Scores]) -> None:
            answers = {index: _summed(scores) for index, scores in scored.items() if index not in answered}
            self.journal.put(self._models, {keys[index]: answer.tobytes() for index, answer in answers.items()})
            for index, answer in answers.items():
                deliver_all(index, answer)

        if len(answered) < len(keys):
            self.scorer.score(ScoreRequest(unique, answered=answered), store)

    def _kept(self, key: bytes) -> np.ndarray | None:
        kept = self.journal.get(self._models, key)
        return None if kept is None else np.frombuffer(kept).reshape(-1, len(FIELDS))


def _key(query: Query) -> bytes:
    text = np.asarray(
        [len(query.targets), *query.ids, *query.targets, *([-1, *query.labels] if len(query.labels) else [])],
        dtype=np.int64,
    ).tobytes()
    return hashlib.blake2b(text, digest_size=16).digest()


def _summed(scores: Scores) -> np.ndarray:
    assert scores.greedy is not None
    kl = np.concatenate([[0.0], scores.measures["kl"].sum(1, dtype=np.float64)])
    return np.stack([scores.logprob.sum(1, dtype=np.float64), scores.greedy.all(1), kl], axis=1, dtype=np.float64)


def answers_of(
    loaded: LoadedModel, scorer: Callable[[], Scorer], identities: Sequence[str], journal: Journal | None
) -> SharedAnswers | None:
    """By that scorer; None, which is said, where the model cannot be scored in shared passes."""
    if loaded.is_prompt_tuned:
        logger.warning("A prompt-tuned model is run once for each variant: its virtual tokens are not in the batch.")
        return None
    try:
        shared = scorer()
        with loaded.autocast():
            logger.debug("%s: sharing %s", type(loaded.model).__name__, shared.layout)
    except ValueError as error:
        logger.warning("Each variant is run by itself, and no KL is taken: %s.", error)
        return None
    return SharedAnswers(shared, journal, identities)
