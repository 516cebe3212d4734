"""Attention of rows that are decoded to a beginning that many of them share, without a copy of it for each row.

The scores of all rows behind a prefix are one product of matrices, where a copy for each row is read once for each
token that it writes. One softmax goes over the prefix's scores and the row's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "sae_lm_eval_shared_prefix"
REPLACED = ("sdpa", "eager")  # implementations whose function this one computes
# What models hand over besides: said of the whole pass, or in effect in the mask already.
WITHOUT_EFFECT = ("sliding_window", "position_ids", "use_cache", "cache_position", "is_causal", "output_attentions")


class AttentionPrefix(NamedTuple):
    """Keys and values (heads, tokens, width of a head) of a beginning in one layer."""

    keys: Tensor
    values: Tensor


class RowGroup(NamedTuple):
    """Consecutive rows of a segment, counted from its first, that have no token of their own before `start`."""

    rows: slice
    start: int


class Segment(NamedTuple):
    """Consecutive rows of a batch that are behind the same prefix, or behind none, and the parts that they make."""

    rows: slice
    prefix: AttentionPrefix | None
    parts: Sequence[RowGroup]


class PrefixAttention:
    """Lets the attention of `model` look at prefixes besides the keys and values of its rows.

    `longest` is the most tokens of a text of which no layer's window leaves one out; `layers` have been asked so far.

    Raises `ValueError` where the model's attention is of a kind that this does not compute.
    """

    def __init__(self, model: nn.Module):
        configs = (getattr(module, "config", None) for module in model.modules())
        self._configs: list[Any] = list(
            {id(config): config for config in configs if hasattr(config, "_attn_implementation")}.values()
        )
        self.layers: set[int] = set()
        self._names = [config._attn_implementation for config in self._configs]
        if not any(name in REPLACED for name in self._names):
            raise ValueError(f"Attention of {type(model).__name__} is not one of {', '.join(REPLACED)}")
        sizes = (getattr(config, name, None) for config in self._configs for name in ("sliding_window", "window_size"))
        self.longest: float = min((size for size in sizes if isinstance(size, int)), default=float("inf"))
        if any(getattr(config, "attention_chunk_size", None) for config in self._configs):
            raise ValueError("Attention in chunks depends on where a text begins")

    @contextmanager
    def looking_at(self, segments: Sequence[Sequence[Segment]]) -> Iterator[None]:
        """Inside the scope, rows attend to the prefixes of their segments, which are given by layer."""
        token = _looks.set(_Look(segments, self.layers))
        for config, name in zip(self._configs, self._names, strict=True):
            config._attn_implementation = NAME if name in REPLACED else name
        try:
            yield
        finally:
            for config, name in zip(self._configs, self._names, strict=True):
                config._attn_implementation = name
            _looks.reset(token)


class _Look(NamedTuple):
    segments: Sequence[Sequence[Segment]]
    layers: set[int]


_looks: ContextVar[_Look] = ContextVar("looks")


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers asks for it: query (rows, heads, 1, width), what the rows have themselves as key and value."""
    unknown = [name for name, value in others.items() if value is not None and name not in WITHOUT_EFFECT]
    if dropout or unknown:
        raise ValueError(f"Attention with {', '.join(unknown or ['dropout'])} is not computed here")
    rows, heads, _, width = query.shape
    # Heads of queries by the head of keys that they read.
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], width) * (scaling or width**-0.5)
    out = grouped.new_empty(*grouped.shape[:-1], value.shape[-1])
    look = _looks.get()
    look.layers.add(module.layer_idx)
    for segment in look.segments[module.layer_idx]:
        index = segment.rows
        mask = None if attention_mask is None else attention_mask.expand(rows, -1, -1, -1)[index]
        out[index] = _behind(segment, grouped[index], key[index], value[index], mask, softcap)
    return out.reshape(rows, 1, heads, value.shape[-1]), None


def _behind(
    segment: Segment, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softcap: float | None
) -> Tensor:
    """(rows, heads, queries of a head, width), from the rows' own keys and values and a mask of what they see."""
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    prefix, length, before, of_prefix = segment.prefix, 0, None, []
    if prefix is not None:
        merged = query.transpose(0, 1).flatten(1, 2)  # (heads, rows x queries, width)
        before = (merged @ prefix.keys.mT).unflatten(1, (len(query), -1)).transpose(0, 1)
        length = before.shape[-1]
    for rows, start in segment.parts:
        scores = query[rows] @ key[rows, :, start:].mT
        if before is not None:
            scores = torch.cat([before[rows], scores], dim=-1)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            scores[..., length:] = scores[..., length:].masked_fill(~mask[rows, ..., start:], -torch.inf)
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
        out[rows] = weights[..., length:] @ value[rows, :, start:]
        of_prefix.append(weights[..., :length])
    if prefix is not None:
        merged = torch.cat(of_prefix).transpose(0, 1).flatten(1, 2)
        out += (merged @ prefix.values).unflatten(1, (len(query), -1)).transpose(0, 1)
    return out


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
