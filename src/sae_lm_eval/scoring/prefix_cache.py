"""Keys and values of a prefix, computed once and attended to by every row behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class _Kept(DynamicLayer):
    """A layer that begins with a prefix's keys and values, and grows apart from it."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


class _Shared(_Kept):
    """Gives a batch the prefix's keys and values before its own; keeps nothing of the batch.

    The prefix has one row for each copy that the fork has made of it by this layer, the batch as many for each.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self._before(self.keys, key_states), self._before(self.values, value_states)

    @staticmethod
    def _before(prefix: Tensor, own: Tensor) -> Tensor:
        copies, *shape = prefix.shape
        rows = len(own) // copies
        repeated = prefix[:, None].expand(copies, rows, *shape)
        return torch.cat([repeated, own.unflatten(0, (copies, rows))], dim=-2).flatten(0, 1)


class _Recorded(_Shared):
    """One that keeps the batch's own keys and values beside the prefix's; of one pass, as it begins without any."""

    own_keys: Tensor | None = None
    own_values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.own_keys, self.own_values = key_states, value_states
        return super().update(key_states, value_states, *args, **kwargs)


def empty() -> Cache:
    """A cache to run a prefix through. Sliding-window layers keep all of it, so that none of it is missed later."""
    return DynamicCache()


def shared(prefix: Cache) -> Cache:
    """What a batch of rows behind `prefix` is run with; `prefix` stays as it is."""
    return Cache(layers=[_Shared(*pair) for pair in _pairs(prefix)])


def recording(prefix: Cache) -> Cache:
    """As `shared`, and its layers have the batch's `own_keys` and `own_values` after a pass."""
    return Cache(layers=[_Recorded(*pair) for pair in _pairs(prefix)])


def extended(prefix: Cache) -> Cache:
    """What a longer prefix is run with that begins as `prefix` does; `prefix` stays as it is."""
    return Cache(layers=[_Kept(*pair) for pair in _pairs(prefix)])


def _pairs(cache: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for layer in cache.layers:
        yield layer.keys, layer.values
