"""Whether what a model makes of a token depends on how long the whole sequence is.

Rotary tables may: LongRoPE takes another one beyond a length, dynamic scaling one for every length. Behind a prefix
that was run by itself, or beside a longer sequence, such a model answers something else.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FIRST = 8  # positions that are compared
BEHIND = (1, 8)  # tokens by which a boundary is overstepped
LONGER = 24  # a length to try whatever the configuration says
ROWS = (3, 48)  # of the batches that tell how far rounding goes
SPREADS = 3  # how many times as far a length may move a state
NAMES_OF_LENGTHS = re.compile(r"max|window|position|length|original|context|ctx|chunk|seq")
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
# Multiplications that a trial of the whole model may take; longer boundaries are tried on the rotary tables alone.
AFFORDABLE = {"cpu": 2e10}
AFFORDABLE_ELSEWHERE = 1e14


class PositionTable(NamedTuple):
    """A module without weights that is given positions, and what else it was called with."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def at(self, positions: Tensor) -> list[Tensor]:
        """What it gives for positions (1, positions)."""
        args = tuple(_instead(value, positions) for value in self.args)
        kwargs = {name: _instead(value, positions) for name, value in self.kwargs.items()}
        out = self.module.forward(*args, **kwargs)
        return [part for part in (out if isinstance(out, tuple | list) else (out,)) if isinstance(part, Tensor)]


class Lengths:
    """What of `trunk`, the model without its head, depends on the length of a sequence of up to `longest` tokens."""

    def __init__(self, model: Any, trunk: Any, longest: int):
        self.trunk = trunk
        self.device = next(model.parameters()).device
        self.dtype = model.dtype
        self.tables = self._tables()
        named = {length for length in lengths_of(model.config.to_dict()) if FIRST < length < longest}
        self.boundaries = sorted(named)
        self.weights = sum(weight.numel() for weight in trunk.parameters())

    @torch.no_grad()
    def matter(self) -> bool:
        """Whether the first positions of a sequence differ by how many follow, on both sides of every boundary."""
        return self._tables_differ or self._trunk_differs()

    @contextmanager
    def from_nothing(self) -> Iterator[None]:
        """Inside the scope, a pass through the trunk finds rotary tables as if no other had gone before it."""
        with ExitStack() as scope:
            if self._tables_differ:
                scope.callback(self.trunk.register_forward_pre_hook(self._before_trunk).remove)
            yield

    def _before_trunk(self, _module: nn.Module, _args: tuple) -> None:
        self._begin()

    def _begin(self) -> None:
        """Ask each table for position 0: one that grows with what it has seen goes back to where it began."""
        for table in self.tables:
            table.at(torch.zeros(1, 1, dtype=torch.long, device=self.device))

    def _tables(self) -> list[PositionTable]:
        """Found as they are called when the trunk reads two tokens."""
        tables: list[PositionTable] = []

        def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
            tables.append(PositionTable(module, args, kwargs))

        with torch.no_grad(), ExitStack() as scope:
            for module in self.trunk.modules():
                if _takes_positions(module) and not any(True for _ in module.parameters()):
                    scope.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
            self.trunk(input_ids=torch.zeros(1, 2, dtype=torch.long, device=self.device), use_cache=False)
        return tables

    @cached_property
    @torch.no_grad()
    def _tables_differ(self) -> bool:
        first = torch.arange(FIRST, device=self.device)
        for table in self.tables:
            seen = []
            for last in (FIRST, *(length + behind - 1 for length in self.boundaries for behind in BEHIND)):
                self._begin()
                parts = table.at(torch.cat([first, first.new_tensor([last])])[None])
                seen.append([_of_first(part) for part in parts])
            if any(
                _off(rows, reference) > 1e-5 for parts in seen for rows, reference in zip(parts, seen[0], strict=True)
            ):
                return True
        return False

    def _trunk_differs(self) -> bool:
        most = AFFORDABLE.get(self.device.type, AFFORDABLE_ELSEWHERE) / max(1, self.weights)
        lengths = [LONGER, *(length + BEHIND[-1] for length in self.boundaries)]
        plain = self._states(FIRST + 1)
        off = max((_off(self._states(length), plain) for length in lengths if length <= most), default=0.0)
        if off <= TOLERANCE.get(self.dtype, 1e-3):
            return False
        # Another length is another order of sums, and so is another number of rows, which alone must change nothing.
        return off > SPREADS * max(_off(self._states(FIRST + 1, rows), plain) for rows in ROWS)

    def _states(self, length: int, rows: int = 1) -> Tensor:
        vocabulary = self.trunk.config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(0))
        ids = torch.cat([torch.arange(FIRST) % vocabulary, ids])[None, :length].to(self.device)
        return self.trunk(input_ids=ids.expand(rows, -1), use_cache=False).last_hidden_state[:1, :FIRST]


def lengths_of(config: Mapping[Any, Any]) -> Iterator[int]:
    """The numbers of a configuration, at any depth, whose names are those of lengths."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from lengths_of(value)
        elif isinstance(value, int) and not isinstance(value, bool) and NAMES_OF_LENGTHS.search(str(name)):
            yield value


def _takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(type(module).forward).parameters


def _instead(value: Any, positions: Tensor) -> Any:
    """`positions` where positions were given, in their shape but for the last axis."""
    if isinstance(value, Tensor) and not value.is_floating_point() and value.ndim >= 2:
        return positions.to(value).expand(*value.shape[:-1], -1)
    return value


def _of_first(part: Tensor) -> Tensor:
    """What a table has for the first positions, wherever the axis of positions is."""
    axis = next((axis for axis, size in enumerate(part.shape) if size == FIRST + 1), None)
    return part if axis is None else part.narrow(axis, 0, FIRST)


def _off(part: Tensor, reference: Tensor) -> float:
    if part.shape != reference.shape:
        return float("inf")
    wide = torch.complex128 if part.is_complex() else torch.float64
    return float((part.to(wide) - reference.to(wide)).norm() / reference.to(wide).norm().clamp(min=1e-12))
