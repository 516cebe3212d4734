"""Keys and values of a prefix, computed once and attended to by every row behind it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class _Shared(DynamicLayer):
    """Gives a batch the prefix's keys and values before its own; keeps nothing of the batch.

    The prefix has one row for each copy that the fork has made of it by this layer, the batch as many for each.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_args, **_kwargs) -> tuple[Tensor, Tensor]:
        return self._before(self.keys, key_states), self._before(self.values, value_states)

    @staticmethod
    def _before(prefix: Tensor, own: Tensor) -> Tensor:
        copies, *shape = prefix.shape
        rows = len(own) // copies
        repeated = prefix[:, None].expand(copies, rows, *shape)
        return torch.cat([repeated, own.unflatten(0, (copies, rows))], dim=-2).flatten(0, 1)


def empty() -> DynamicCache:
    """A cache to run a prefix through. Sliding-window layers keep all of it, so that none of it is missed later."""
    return DynamicCache()


def shared(prefix: DynamicCache) -> Cache:
    """What a batch of rows behind `prefix` is run with; `prefix` stays as it is."""
    return Cache(layers=[_Shared(layer.keys, layer.values) for layer in prefix.layers])


def extended(prefix: DynamicCache) -> DynamicCache:
    """What a longer prefix is run with that begins as `prefix` does; `prefix` stays as it is."""
    longer = DynamicCache()
    for layer in prefix.layers:
        copy = DynamicLayer()
        copy.lazy_initialization(layer.keys, layer.values)
        copy.keys, copy.values = layer.keys, layer.values
        longer.layers.append(copy)
    return longer
