"""Rows and prefixes of a plan -> batches: how many rows run at once, their ids, positions, masks and targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.scoring.packing import PackedRow, Prefix
from sae_lm_eval.scoring.request import Query, TargetIndex

logger = logger_of(__name__)

ENOUGH = 32  # positions to run the head for at once: for a few it takes as long, since all its weights are read


class Batch(NamedTuple):
    """What one pass through the trunk reads, as arrays.

    `visible` is which tokens of the prefix and of its own row each token attends to, or None where that is all before
    it. `real` is which tokens are those of queries; the others fill up the rows.
    """

    ids: Int[np.ndarray, "rows length"]
    positions: Int[np.ndarray, "rows length"]
    visible: Bool[np.ndarray, "rows length prefix_and_length"] | None
    targets: TargetIndex
    real: Bool[np.ndarray, "rows length"]


class Batches:
    """Makes batches of up to `tokens` tokens, of which a fork appends `copies` - 1 copies.

    `starts` are the queries' first columns in the tables of scores, `heads` the number of the model's attention
    heads where it is known. Unless `uneven`, rows of several lengths never run together.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        starts: Int[np.ndarray, " queries_and_one"],
        *,
        tokens: int,
        copies: int,
        heads: int | None,
        uneven: bool = True,
    ):
        self.queries, self.starts, self.tokens = queries, starts, tokens
        self.copies, self.heads, self.uneven = copies, heads, uneven

    def rows_at_once(self, rows: Sequence[PackedRow]) -> int:
        """How many of the rows, the longest first, run as one batch."""
        count = min(len(rows), max(1, self.tokens // max(1, len(rows[0].ids))))
        if not self.uneven:
            count = sum(len(row.ids) == len(rows[0].ids) for row in rows[:count])  # the longest come first
        # Some models give their blocks a tensor of (heads, ...), which must not look like one of (rows, ...).
        while count > 1 and (self._is_square(rows[:count]) or count * self.copies == self.heads):
            count -= 1
        return count

    def rows_for_head(self, rows: Sequence[PackedRow]) -> int:
        """How many of the rows, the longest first, run before the head runs for all of them."""
        count = positions = 0
        while count < len(rows) and positions < ENOUGH:
            batch = rows[count : count + self.rows_at_once(rows[count:])]
            positions += len(self._index(batch).positions)
            count += len(batch)
        return count

    def shrink(self, rows: Sequence[PackedRow], count: int) -> None:
        """Let no batch have more tokens than `count` rows as long as the first."""
        self.tokens = count * len(rows[0].ids)
        logger.warning("Out of memory: continuing with batches of %d tokens.", self.tokens)

    def of_rows(self, rows: Sequence[PackedRow]) -> Batch | None:
        """Rows that run together, the longest first; None where they hold no token behind their prefix."""
        depth, length = rows[0].depth, self._length(rows)
        if not length:
            return None
        ids = np.zeros((len(rows), length), dtype=np.int64)
        positions = np.tile(np.arange(depth, depth + length), (len(rows), 1))
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], positions[number, : len(row.ids)] = row.ids, row.depths
        visible = self._visible(rows, depth, length) if rows[0].branches else None
        real = np.arange(length) < np.array([[len(row.ids)] for row in rows])
        return Batch(ids, positions, visible, self._index(rows), real)

    def of_prefix(self, node: Prefix) -> Batch:
        """The tokens of a prefix, which are one row."""
        parts = (self._targets(number, node.start, node.stop) for number in node.members)
        index = TargetIndex.joined((where - node.start, tokens, columns) for where, tokens, columns in parts)
        ids = np.array([node.ids], dtype=np.int64)
        return Batch(ids, np.arange(node.start, node.stop)[None], None, index, np.ones(ids.shape, dtype=bool))

    def _is_square(self, rows: Sequence[PackedRow]) -> bool:
        """Whether a tensor of (positions, ...) would look like one of (rows, ...)."""
        return len(rows[0].ids) == len(rows) * self.copies

    def _length(self, rows: Sequence[PackedRow]) -> int:
        """Of a batch of rows, the longest first; where it would be square, a column of padding is added."""
        return len(rows[0].ids) + self._is_square(rows)

    def _index(self, rows: Sequence[PackedRow]) -> TargetIndex:
        depth, length, parts = rows[0].depth, self._length(rows), []
        for number, row in enumerate(rows):
            for query, path in row.paths.items():
                where, tokens, columns = self._targets(query, depth, len(self.queries[query].ids))
                parts.append((number * length + path[where - depth], tokens, columns))
        return TargetIndex.joined(iter(parts))

    def _targets(
        self, number: int, start: int, stop: int
    ) -> tuple[Int[np.ndarray, " targets"], Int[np.ndarray, " targets"], Int[np.ndarray, " targets"]]:
        """A query's targets that positions from `start` to `stop` predict: these positions, the tokens, the columns."""
        query = self.queries[number]
        first = len(query.ids) - len(query.targets)
        where = np.arange(max(start, first), max(start, first, min(stop, len(query.ids))))
        return where, np.asarray(query.targets, dtype=np.int64)[where - first], self.starts[number] + where - first

    @staticmethod
    def _visible(
        rows: Sequence[PackedRow], depth: int, length: int
    ) -> Bool[np.ndarray, "rows length prefix_and_length"]:
        visible = np.tile(np.eye(length, dtype=bool), (len(rows), 1, 1))  # padding sees itself: a row needs something
        for number, row in enumerate(rows):
            visible[number, : len(row.ids), : len(row.ids)] = row.visible()
        return np.pad(visible, ((0, 0), (0, 0), (depth, 0)), constant_values=True)
