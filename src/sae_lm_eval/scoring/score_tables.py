"""The scores of all queries of a request, a column for each target."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, Shaped

from sae_lm_eval.scoring.request import ScoreRequest, Scores


class ScoreTables:
    """`tables` has float32 arrays (models, targets) by name, as `Scores` has them for one query.

    `starts` (queries + 1,) are the columns at which the queries' targets begin.
    """

    def __init__(self, request: ScoreRequest, models: int):
        self.compared = models - 1 if request.compared is None else request.compared
        self.measures = tuple(request.measures)
        self.starts = np.concatenate([[0], np.cumsum([len(query.targets) for query in request.queries], dtype=int)])
        rows = {"logprob": models, **({"greedy": models} if request.greedy else {})}
        rows |= dict.fromkeys(self.measures, self.compared)
        self.tables = {name: np.zeros((count, self.starts[-1]), dtype=np.float32) for name, count in rows.items()}

    def queries(self, columns: Int[np.ndarray, " targets"]) -> Int[np.ndarray, " targets"]:
        """The numbers of the queries that columns are of."""
        return np.searchsorted(self.starts, columns, side="right") - 1

    def write(
        self, columns: Int[np.ndarray, " targets"], values: Mapping[str, Shaped[np.ndarray, "_ targets"]]
    ) -> None:
        """Put `values`, by the tables' names, into some columns."""
        for name, rows in values.items():
            self.tables[name][:, columns] = rows

    def scores(self, number: int) -> Scores:
        """Of the query of that number."""
        columns = slice(self.starts[number], self.starts[number + 1])
        own = {name: table[:, columns] for name, table in self.tables.items()}
        return Scores(own["logprob"], own.get("greedy"), {name: own[name] for name in self.measures})
