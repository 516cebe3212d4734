"""Keys and values of sequences of several lengths that are decoded in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 32  # tokens by which a batch may grow before its rows are copied again


class KeysValues(NamedTuple):
    """Of a sequence in one layer, (heads, tokens, width of a head) each, in consecutive pieces."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        return sum(piece.shape[1] for piece in self.keys)

    @property
    def bytes_a_token(self) -> int:
        return sum(piece.element_size() * piece.shape[0] * piece.shape[2] for piece in (self.keys[0], self.values[0]))


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
    """The keys and values of a batch of rows, in every layer.

    The rows end at the same place and begin where their length says, so that one position of the storage is the next
    token's of all of them. What lies before a row is masked.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.used = 0
        self._layers: list[_RowLayer] = []

    @property
    def is_full(self) -> bool:
        return not self._layers or self.used >= self._storage

    @property
    def _storage(self) -> int:
        keys = self._layers[0].keys
        assert keys is not None
        return keys.shape[2]

    def forget_last(self) -> None:
        """Take the token back whose pass was begun and failed."""
        self.used -= 1
        self.lengths = [length - 1 for length in self.lengths]
        for layer in self._layers:
            layer.used = self.used

    def arrange(self, rows: Sequence[int | list[KeysValues]]) -> None:
        """Make it a batch of these rows, in this order: those that it has by their number, new ones by their layers."""
        layers = [self._arranged(index, rows) for index in range(self._count(rows))]
        self.lengths = [self.lengths[row] if isinstance(row, int) else row[0].length for row in rows]
        self._layers, self.used = layers, max(self.lengths, default=0)

    def _count(self, rows: Sequence[int | list[KeysValues]]) -> int:
        return next((len(row) for row in rows if not isinstance(row, int)), len(self._layers)) if rows else 0

    def _arranged(self, index: int, rows: Sequence[int | list[KeysValues]]) -> _RowLayer:
        pieces = [self._pieces(index, row) if isinstance(row, int) else row[index] for row in rows]
        used = max(piece.length for piece in pieces)
        storages = []
        for name in KeysValues._fields:
            example = getattr(pieces[0], name)[0]
            storage = example.new_zeros(len(rows), example.shape[0], used + ROOM, example.shape[2])
            for row, piece in zip(storage, pieces, strict=True):
                start = used - piece.length
                for part in getattr(piece, name):
                    row[:, start : start + part.shape[1]] = part
                    start += part.shape[1]
            storages.append(storage)
        keys, values = storages
        return _RowLayer(keys, values, used)

    def _pieces(self, index: int, row: int) -> KeysValues:
        layer, start = self._layers[index], self.used - self.lengths[row]
        assert layer.keys is not None
        assert layer.values is not None
        return KeysValues((layer.keys[row, :, start : self.used],), (layer.values[row, :, start : self.used],))

    def begin(self) -> tuple[Cache, Tensor]:
        """What a pass that reads one more token of every row is given: a cache, and a mask (rows, tokens)."""
        lengths = torch.tensor(self.lengths)[:, None]
        mask = torch.arange(self.used + 1)[None] >= self.used - lengths
        self.lengths = [length + 1 for length in self.lengths]
        self.used += 1
        return Cache(layers=list(self._layers)), mask.long()
