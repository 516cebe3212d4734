"""Token sequences -> what to run: shared beginnings once, the rest packed into rows. No torch.

Sorted, sequences with a common beginning stand side by side. A long beginning that fills several rows becomes a
*prefix*, run once for all that follow it. Shorter ones are shared inside a *row*: its tokens form trees, in which
each token attends to those before it in its own sequence alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Shaped


@dataclass
class PackedRow:
    """Tokens that run as one row of a batch, behind a prefix of `depth` tokens.

    `parents` holds for each token the slot of the one before it, -1 where that is the prefix or nothing.
    `paths` holds the slots of each sequence's tokens behind the prefix, by the sequence's number.
    """

    depth: int
    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def branches(self) -> bool:
        """Whether it is more than one sequence from left to right, so that it needs a mask of its own."""
        return self.parents != list(range(-1, len(self.parents) - 1))

    def add(self, number: int, ids: Sequence[int], shared: int, before: np.ndarray) -> None:
        """Add a sequence whose first `shared` tokens behind the prefix are those of the path `before`."""
        start, new = len(self.ids), ids[self.depth + shared :]
        path = np.concatenate([before[:shared], np.arange(start, start + len(new))])
        self.ids.extend(new)
        if new:
            self.parents.extend([int(path[shared - 1]) if shared else -1, *range(start, start + len(new) - 1)])
            self.depths.extend(range(self.depth + shared, len(ids)))
        self.paths[number] = path

    def visible(self) -> Bool[np.ndarray, "tokens tokens"]:
        """Which tokens of the row each may attend to."""
        seen = np.zeros((len(self.ids), len(self.ids)), dtype=bool)
        for slot, parent in enumerate(self.parents):
            if parent >= 0:
                seen[slot] = seen[parent]
            seen[slot, slot] = True
        return seen


@dataclass
class Prefix:
    """The tokens from `start` to `stop` of the sequences numbered `members`, who all begin with the same `stop`.

    Behind it come `rows`, and longer prefixes that begin with this one.
    """

    start: int
    stop: int
    ids: tuple[int, ...]
    members: list[int]
    rows: list[PackedRow] = field(default_factory=list)
    longer: list[Prefix] = field(default_factory=list)


def pack(sequences: Sequence[Sequence[int]], *, capacity: int, limit: int, prefixes: bool, trees: bool) -> Prefix:
    """What to run so that every token of every sequence is computed, as a root whose own prefix is empty.

    A row holds up to `capacity` tokens, and with its prefix no more than `limit`, unless a single sequence is
    longer. Without `prefixes` beginnings are shared in rows alone; without `trees` a row is one sequence.
    """
    return _Planner(sequences, capacity, limit, prefixes, trees).root()


def common(a: Shaped[np.ndarray, " one"], b: Shaped[np.ndarray, " other"]) -> int:
    """How many tokens two sequences have in common from their beginning on."""
    short = min(len(a), len(b))
    differ = a[:short] != b[:short]
    return int(differ.argmax()) if differ.any() else short


class _Planner:
    def __init__(
        self, sequences: Sequence[Sequence[int]], capacity: int, limit: int, prefixes: bool, trees: bool
    ) -> None:
        self.sequences, self.capacity, self.limit = sequences, capacity, limit
        self.prefixes, self.trees = prefixes, trees
        # Big-endian bytes sort as the numbers do, and much faster.
        arrays = [np.asarray(ids, dtype=">u4") for ids in sequences]
        self.order = sorted(range(len(arrays)), key=lambda i: arrays[i].tobytes())
        neighbours = pairwise(self.order)
        # shared[i]: what the i-th in order has in common with the one before it.
        self.shared = np.array([0, *(common(arrays[a], arrays[b]) for a, b in neighbours)], dtype=int)
        new = np.array([len(arrays[i]) for i in self.order], dtype=int) - self.shared
        self.before = np.concatenate([[0], np.cumsum(new)])

    def root(self) -> Prefix:
        root = Prefix(0, 0, (), list(range(len(self.sequences))))
        self._fill(root, 0, len(self.order))
        return root

    def _fill(self, prefix: Prefix, first: int, last: int) -> None:
        """Put the sequences from `first` to `last` in order into rows and longer prefixes behind `prefix`."""
        loose: list[int] = []
        pending = [(first, last)]
        while pending:
            start, stop = pending.pop()
            length = self._common(start, stop)
            if self.prefixes and self._pays(start, stop, prefix.stop, length):
                members = self.order[start:stop]
                ids = tuple(self.sequences[members[0]][prefix.stop : length])
                longer = Prefix(prefix.stop, length, ids, members)
                prefix.longer.append(longer)
                self._fill(longer, start, stop)
            elif not self.prefixes or stop - start == 1 or self._new(start, stop, length) <= self.capacity:
                loose.extend(range(start, stop))
            else:
                cuts = [start, *(start + 1 + np.flatnonzero(self.shared[start + 1 : stop] == length)).tolist(), stop]
                pending.extend(reversed(list(pairwise(cuts))))
        prefix.rows = self._rows(loose, prefix.stop)

    def _common(self, start: int, stop: int) -> int:
        if stop - start == 1:
            return len(self.sequences[self.order[start]])
        return int(self.shared[start + 1 : stop].min())

    def _new(self, start: int, stop: int, depth: int) -> int:
        """Tokens of a range of sequences that lie behind their common beginning of `depth`, each counted once."""
        first = len(self.sequences[self.order[start]]) - depth
        return int(first + self.before[stop] - self.before[start + 1])

    def _pays(self, start: int, stop: int, depth: int, length: int) -> bool:
        """Whether running a prefix up to `length` spares more than a row: a pass of its own is not free."""
        if stop - start == 1 or length <= depth:
            return False
        new = self._new(start, stop, length)
        room = max(1, min(self.capacity, self.limit - depth) - (length - depth))
        rows = -(-new // room) if self.trees else stop - start
        return (length - depth) * (rows - 1) > self.capacity

    def _rows(self, loose: Sequence[int], depth: int) -> list[PackedRow]:
        """Rows of the sequences at the places `loose` in order, behind a prefix of `depth` tokens."""
        numbers = [self.order[place] for place in loose]
        lengths = [max(0, len(self.sequences[number]) - depth) for number in numbers]
        shared = [0]
        for last, place in pairwise(loose):
            beginning = int(self.shared[last + 1 : place + 1].min()) - depth
            shared.append(min(max(beginning, 0), lengths[len(shared) - 1]))
        rows, start = [], 0
        while start < len(loose):
            end = self._end(lengths, shared, start, min(self.capacity, self.limit - depth))
            row, path = PackedRow(depth), np.zeros(0, dtype=int)
            for index in range(start, end):
                number = numbers[index]
                row.add(number, self.sequences[number], shared[index] if index > start else 0, path)
                path = row.paths[number]
            rows.append(row)
            start = end
        return rows

    def _end(self, lengths: Sequence[int], shared: Sequence[int], start: int, room: int) -> int:
        """Where the row that begins at `start` ends: with as much as there is room for, so that little is torn apart.

        What a sequence shares with the one before it is run again if the row ends between them; so of the places in
        the row's latter half the one is taken where that is least.
        """
        tokens = [lengths[start]]
        for end in range(start + 1, len(lengths)):
            new = lengths[end] - shared[end]
            follows = self.trees or shared[end] == lengths[end - 1] == tokens[-1]
            if not follows or (new and tokens[-1] + new > room):
                break
            tokens.append(tokens[-1] + new)
        else:
            return len(lengths)
        if not self.trees:
            return end
        latter = [place for place in range(start + 1, end + 1) if 2 * tokens[place - start - 1] >= room]
        return min(latter, key=lambda place: (shared[place], -place), default=end)
