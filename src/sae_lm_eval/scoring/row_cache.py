"""Keys and values of sequences of several lengths that are decoded in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from sae_lm_eval.scoring.prefix_attention import AttentionPrefix, RowGroup, Segment

LEAST_USED = 3 / 4  # of the tokens of the longest row in a part, in rows that come longest first
ROOM = 32  # tokens by which a batch may grow before its rows are copied again


class KeysValues(NamedTuple):
    """Of a sequence in one layer, (heads, tokens, width of a head) each, behind a beginning that others share."""

    keys: Tensor
    values: Tensor
    prefix: AttentionPrefix | None = None

    @property
    def length(self) -> int:
        """In tokens, without the prefix."""
        return self.keys.shape[1]

    @property
    def bytes_a_token(self) -> int:
        return sum(x.element_size() * x.shape[0] * x.shape[2] for x in (self.keys, self.values))

    def joined(self) -> KeysValues:
        """The same with a copy of the prefix of its own."""
        if self.prefix is None:
            return self
        return KeysValues(
            torch.cat([self.prefix.keys, self.keys], dim=1), torch.cat([self.prefix.values, self.values], dim=1)
        )


class _RowLayer(DynamicLayer):
    """A layer of a batch whose rows end at the same place, in storage that has room for more tokens."""

    def __init__(self, keys: Tensor, values: Tensor, used: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.used = keys, values, used

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        end = self.used + key_states.shape[-2]
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.used


class RowCache:
    """The keys and values of a batch of rows, in every layer, and the prefixes that stand before them.

    The rows end at the same place and begin where their length says, so that one position of the storage is the next
    token's of all of them. What lies before a row is masked.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.used = 0
        self._layers: list[_RowLayer] = []
        self._prefixes: list[list[AttentionPrefix | None]] = []  # by layer and row

    @property
    def is_full(self) -> bool:
        return not self._layers or self.used >= self._storage

    @property
    def _storage(self) -> int:
        keys = self._layers[0].keys
        assert keys is not None
        return keys.shape[2]

    @property
    def segments(self) -> list[list[Segment]]:
        """By layer, the rows behind each prefix."""
        starts = [self.used - length for length in self.lengths]
        # On a CPU what lies before a row costs as much as its tokens; on a GPU a call for some rows costs more.
        least = LEAST_USED if self._layers and self._layers[0].device == torch.device("cpu") else 0.0
        return [_segments(prefixes, starts, self.used, least) for prefixes in self._prefixes]

    def forget_last(self) -> None:
        """Take the token back whose pass was begun and failed."""
        self.used -= 1
        self.lengths = [length - 1 for length in self.lengths]
        for layer in self._layers:
            layer.used = self.used

    def arrange(self, rows: Sequence[int | list[Any]]) -> None:
        """Make it a batch of these rows, in this order: those that it has by their number, new ones by their layers.

        A layer takes the place of the one before, and its states are taken out of the lists of new rows, so that
        memory holds one layer twice at a time. Where it does not suffice, the cache is not to be used any more.
        """
        lengths = [self.length(row) for row in rows]
        count = next((len(row) for row in rows if not isinstance(row, int)), len(self._layers)) if rows else 0
        prefixes = []
        for index in range(count):
            pieces = [self._piece(index, row) if isinstance(row, int) else row[index] for row in rows]
            prefixes.append([piece.prefix for piece in pieces])
            self._layers[index : index + 1] = [_arranged(pieces)]
            for row in rows:
                if not isinstance(row, int):
                    row[index] = None
        self._layers, self._prefixes = self._layers[:count], prefixes
        self.lengths, self.used = lengths, max(lengths, default=0)

    def length(self, row: int | list[Any]) -> int:
        """Of a row that it has, or of a new one, in tokens without the prefix."""
        return self.lengths[row] if isinstance(row, int) else row[0].length

    def _piece(self, index: int, row: int) -> KeysValues:
        layer, start = self._layers[index], self.used - self.lengths[row]
        assert layer.keys is not None
        assert layer.values is not None
        return KeysValues(
            layer.keys[row, :, start : self.used],
            layer.values[row, :, start : self.used],
            self._prefixes[index][row],
        )

    def begin(self) -> tuple[Cache, Tensor]:
        """What a pass that reads one more token of every row is given: a cache, and a mask (rows, tokens)."""
        lengths = torch.tensor(self.lengths)[:, None]
        mask = torch.arange(self.used + 1)[None] >= self.used - lengths
        self.lengths = [length + 1 for length in self.lengths]
        self.used += 1
        return Cache(layers=list(self._layers)), mask.long()


def _arranged(pieces: Sequence[KeysValues]) -> _RowLayer:
    used = max(piece.length for piece in pieces)
    storages = []
    for name in ("keys", "values"):
        example = getattr(pieces[0], name)
        storage = example.new_zeros(len(pieces), example.shape[0], used + ROOM, example.shape[2])
        for row, piece in zip(storage, pieces, strict=True):
            row[:, used - piece.length : used] = getattr(piece, name)
        storages.append(storage)
    keys, values = storages
    return _RowLayer(keys, values, used)


def _segments(
    prefixes: Sequence[AttentionPrefix | None], starts: Sequence[int], used: int, least: float
) -> list[Segment]:
    """Rows behind the same prefix, in parts whose shortest row has at least that share of the longest's tokens."""
    out: list[Segment] = []
    first = 0
    for row in range(1, len(prefixes) + 1):
        if row == len(prefixes) or prefixes[row] is not prefixes[first]:
            out.append(Segment(slice(first, row), prefixes[first], _parts(starts[first:row], used, least)))
            first = row
    return out


def _parts(starts: Sequence[int], used: int, least: float) -> list[RowGroup]:
    first, out = 0, []
    for row in range(1, len(starts) + 1):
        longest = used - min(starts[first:row])
        if row == len(starts) or used - starts[row] < least * longest:
            out.append(RowGroup(slice(first, row), used - longest))
            first = row
    return out
