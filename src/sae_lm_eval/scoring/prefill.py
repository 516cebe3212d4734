"""Prompts -> their keys and values under every model, shared beginnings once."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.scoring import prefix_attention, prefix_cache
from sae_lm_eval.scoring.forked_pass import Fork, forked
from sae_lm_eval.scoring.memory import in_pieces
from sae_lm_eval.scoring.packing import PackedRow, Prefix, pack
from sae_lm_eval.scoring.row_cache import KeysValues
from sae_lm_eval.splicing.attach import Attachment
from sae_lm_eval.splicing.splice import Context, Variant

logger = logger_of(__name__)

CAPACITY = 256  # tokens that a prefix has to spare at least
LABELS = 2**24  # one above every id: a code is id + label * LABELS, so that tokens of unlike labels are not shared


class Prefilled(NamedTuple):
    """A prompt by its number, and its keys and values: by model, baseline first, and layer."""

    number: int
    states: list[list[KeysValues]]
    beginning: int  # the number of the prefix that it is behind, 0 being none


class Prefill:
    """Runs prompts through the trunk of a model as each of `models`, None being the untouched one.

    Where that comes first the pass is forked; otherwise there must be one variant alone. `limit` is the most tokens of
    a prompt.
    """

    def __init__(self, model: Any, trunk: nn.Module, models: Sequence[Variant | None], *, limit: int) -> None:
        self.model, self.trunk, self.models, self.limit = model, trunk, tuple(models), limit
        self.device = next(model.parameters()).device
        self.heads = getattr(model.config.get_text_config(), "num_attention_heads", None)
        self._most = sys.maxsize  # prompts at once, halved where memory does not suffice
        with self._pass() as fork:
            self._copies = fork.copies

    def _pass(self) -> AbstractContextManager[Fork | _Alone]:
        if self.models[0] is not None:
            return _alone(self.model, self.models[0])
        return forked(self.model, [variant for variant in self.models if variant is not None])

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        size: Callable[[], int],
        capacity: int | None = None,
        numbers: Iterator[int] | None = None,
    ) -> Iterator[list[Prefilled]]:
        """Batches of up to `size()` prompts, asked anew before each, in an order in which beginnings are shared.

        A prompt's tokens are its ids, or codes of ids and labels.

        The model has hooks only while a batch is computed, so that others may use it between two. A beginning is shared
        that spares `capacity` tokens or more. Each gets the next of `numbers`, which count from 1 if not given.
        """
        root = pack(prompts, capacity=capacity or CAPACITY, limit=self.limit, prefixes=True, trees=False)
        yield from self._behind(root, None, size, itertools.count(1) if numbers is None else numbers)

    def _behind(
        self, node: Prefix, cache: Cache | None, size: Callable[[], int], numbers: Iterator[int]
    ) -> Iterator[list[Prefilled]]:
        rows = sorted(node.rows, key=lambda row: -len(row.ids))
        beginning = None if cache is None else _Beginning(next(numbers), cache)
        yield from in_pieces(
            rows,
            lambda rows: self._at_once(min(len(rows), size())),
            lambda rows: self._rows(rows, beginning),
            self._shrink,
        )
        for longer in node.longer:
            yield from self._behind(longer, self._prefix(longer, cache), size, numbers)

    def _at_once(self, count: int) -> int:
        count = max(1, min(count, self._most))
        # Some models give their blocks a tensor of (heads, ...), which must not look like one of (rows, ...).
        return count - 1 if count > 1 and count * self._copies == self.heads else count

    def _shrink(self, _rows: Sequence[PackedRow], most: int) -> None:
        self._most = most
        logger.warning("Out of memory: continuing with %d prompts at once.", most)

    @torch.no_grad()
    def _prefix(self, node: Prefix, cache: Cache | None) -> Cache:
        cache = prefix_cache.empty() if cache is None else prefix_cache.extended(cache)
        with self._pass() as fork:
            self._run(fork, [node.ids], node.start, cache)
        return cache

    @torch.no_grad()
    def _rows(self, rows: Sequence[PackedRow], beginning: _Beginning | None) -> list[Prefilled]:
        own: Any = DynamicCache() if beginning is None else prefix_cache.recording(beginning.cache)
        with self._pass() as fork:
            self._run(fork, [row.ids for row in rows], rows[0].depth, own)
            groups = fork.groups()
        layers = [
            _Layer(None if beginning is None else beginning.layers[index], layer, len(rows))
            for index, layer in enumerate(own.layers)
        ]
        return [
            Prefilled(
                number,
                [[layer.keys_values(index, group, len(path)) for layer in layers] for group in groups],
                0 if beginning is None else beginning.number,
            )
            for index, row in enumerate(rows)
            for number, path in row.paths.items()
        ]

    def _run(self, fork: Fork | _Alone, rows: Sequence[Sequence[int]], start: int, cache: Cache) -> None:
        # A token at least, so that there are layers. No tensor of (positions, ...) may look like one of (rows, ...).
        length = max(1, *(len(ids) for ids in rows))
        length += length == len(rows) * fork.copies and len(rows) > 1
        codes = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids in rows], device=self.device)
        labels, ids = codes // LABELS, codes % LABELS
        positions = torch.arange(start, start + length, device=self.device).repeat(len(rows), 1)
        fork.begin(Context(ids, positions, None, labels))
        self.trunk(input_ids=ids.repeat(fork.copies, 1), past_key_values=cache, use_cache=True)


@contextmanager
def _alone(model: nn.Module, variant: Variant) -> Iterator[_Alone]:
    with ExitStack() as scope:
        yield _Alone(Attachment(model, variant, scope))


class _Alone:
    """A variant on all rows, where a `Fork` would have the baseline's before them."""

    copies = 1

    def __init__(self, attachment: Attachment):
        self.begin = attachment.begin

    def groups(self) -> list[int]:
        return [0]


class _Beginning:
    """A prefix that has been run, as one object for each layer and group, so that equal ones are told by identity."""

    def __init__(self, number: int, cache: Any):
        self.number, self.cache = number, cache
        self.layers = [
            [prefix_attention.AttentionPrefix(*states) for states in zip(layer.keys, layer.values, strict=True)]
            for layer in cache.layers
        ]


class _Layer:
    """What a batch of rows left in one layer, behind what the prefix did."""

    def __init__(self, prefixes: Sequence[prefix_attention.AttentionPrefix] | None, own: Any, rows: int):
        self.prefixes = prefixes
        keys, values = (own.keys, own.values) if prefixes is None else (own.own_keys, own.own_values)
        self.keys, self.values = (x.unflatten(0, (-1, rows)) for x in (keys, values))

    def keys_values(self, row: int, group: int, length: int) -> KeysValues:
        """Of a row of one model; a model that has not been forked yet has the baseline's."""
        keys, values = (_of_group(x, group)[row][:, :length] for x in (self.keys, self.values))
        return KeysValues(keys, values, None if self.prefixes is None else _of_group(self.prefixes, group))


def _of_group(states: Any, group: int) -> Any:
    return states[group if group < len(states) else 0]
