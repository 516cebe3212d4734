"""The requests of tasks as queries whose tokens have labels, and how much of the text the classes cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_lm_eval.attribution.classes import Labels, Reading
from sae_lm_eval.attribution.segments import PromptDocument
from sae_lm_eval.runs.asked_tasks import AskedTask
from sae_lm_eval.scoring.request import Query

TEXTS_AT_ONCE = 512  # whose tokens are looked at together


@dataclass(frozen=True, eq=False)
class Requests:
    """All requests of some documents: `owner` is the number of each one's document, among all documents.

    `counts` has for each division (requests, classes) positions at which something is spliced in; `aligned` is which
    requests' tokens could be found in their text.
    """

    documents: tuple[PromptDocument, ...]
    queries: tuple[Query, ...]
    owner: np.ndarray
    labels: Labels
    counts: tuple[np.ndarray, ...]
    aligned: np.ndarray

    @property
    def tasks(self) -> list[str]:
        """The task of each request."""
        return [self.documents[number].task for number in self.owner]

    def coverage(self, chosen: np.ndarray) -> list[dict[str, Any]]:
        """For each class of each division the documents, of those that are chosen, that have a position in it.

        `positions` is the mean over these documents, of a document's longest request.
        """
        rows = []
        for division, counts in zip(self.labels.divisions, self.counts, strict=True):
            most = np.zeros((len(self.documents), counts.shape[1]), dtype=int)
            np.maximum.at(most, self.owner, counts)
            for name, column in zip(division.classes, most[chosen].T, strict=True):
                has = int(np.count_nonzero(column))
                mean = float(column.sum() / has) if has else None
                rows.append({"division": division.name, "class": name, "documents": has, "positions": mean})
        return rows


def labelled(spliced: Any, tasks: Sequence[AskedTask], labels: Labels, chosen: np.ndarray) -> Requests:
    """The requests of `tasks` as `spliced` reads them; the labels that count are those of the chosen documents."""
    numbered = [(document, requests, number) for number, (document, requests) in enumerate(_documents(tasks))]
    each = [(document, request, number) for document, requests, number in numbered for request in requests]
    pairs = [tuple(map(str, request.args[:2])) for _, request, _ in each]
    queries: list[Query] = []
    aligned: list[bool] = []
    counts: list[list[np.ndarray]] = [[] for _ in labels.divisions]
    variant = spliced.variant
    with spliced.evaluation():
        ids = spliced.group.pairs(pairs)
        for start in range(0, len(pairs), TEXTS_AT_ONCE):
            some = range(start, min(start + TEXTS_AT_ONCE, len(pairs)))
            texts = ["".join(pairs[at]) for at in some]
            spans = spliced.tokens.spans(texts, [[*ids[at][0], *ids[at][1]] for at in some])
            for at, of_text in zip(some, spans, strict=True):
                document, _, number = each[at]
                query = spliced.query(*ids[at])
                reading = _reading(document, pairs[at], of_text, query)
                classes = labels.index(reading)[:-1]
                edited = classes[query.spliced(variant.special_ids, variant.first_position)]
                if chosen[number]:
                    labels.seen.update(edited.tolist())
                for division, column in enumerate(counts):
                    column.append(labels.counts(edited, division))
                queries.append(Query(query.ids, query.targets, classes))
                aligned.append(reading.aligned)
    owner = np.array([number for *_, number in each], dtype=int)
    documents = tuple(document for document, *_ in numbered)
    return Requests(documents, tuple(queries), owner, labels, tuple(map(np.array, counts)), np.array(aligned))


def _documents(tasks: Sequence[AskedTask]) -> list[tuple[PromptDocument, tuple[Any, ...]]]:
    return [pair for task in tasks for pair in zip(task.documents, task.requests, strict=True)]


def _reading(
    document: PromptDocument, pair: Sequence[str], spans: Sequence[tuple[int, int]] | None, query: Query
) -> Reading:
    """The tokens that the model reads and the last that it predicts; what a context is too short for is cut."""
    read = len(query.ids) + 1
    places = np.zeros((read, 2), dtype=int) if spans is None else np.array(spans, dtype=int)[-read:]
    context, continuation = pair
    special = places[:, 1] <= places[:, 0]
    return Reading(
        document, context + continuation, len(context), places, special, read - len(query.targets), spans is not None
    )
