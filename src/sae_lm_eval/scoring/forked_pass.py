"""The untouched model and its variants in one forward pass.

Below its first site a variant computes what the baseline computes. So the batch goes through the lower blocks
once; where a variant writes first, a copy of the baseline's rows is appended, which runs on as that variant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sae_lm_eval.splicing.attach import Attachment, SpliceWatch
from sae_lm_eval.splicing.hook_names import blocks_path
from sae_lm_eval.splicing.module_io import ModuleSide
from sae_lm_eval.splicing.splice import Context, Variant


class Point(NamedTuple):
    """Where in a forward pass rows are appended; None as the block means before the model's first module."""

    block: int | None
    side: Literal["input", "output"]


START = Point(None, "input")


@contextmanager
def forked(model: nn.Module, variants: Sequence[Variant], point: Point | None = None) -> Iterator[Fork]:
    """Inside the scope, a pass through the trunk of `model` that was announced by `begin` runs the variants too.

    Rows are appended as late as may be, or at `point` for every variant.
    """
    with ExitStack() as scope:
        yield Fork(model, variants, scope, point)


class Fork:
    """The hooks that append rows, and those of the variants behind them.

    After `begin(context)` the trunk is called with `context.input_ids` repeated `copies` times along the batch.
    Its output has `1 + len(variants)` times the context's rows; `in_order` puts the baseline first and the
    variants behind it as they were given.
    """

    def __init__(self, model: nn.Module, variants: Sequence[Variant], scope: ExitStack, point: Point | None):
        path = blocks_path(model)
        points = [point or fork_point(variant, path) for variant in variants]
        self.models = 1 + len(variants)
        self._starting = [i for i, point in enumerate(points) if point == START]
        self.copies = 1 + len(self._starting)
        self._order: list[int] = []
        self._rows = self._called_with = 0  # as many as the baseline has; as many as the trunk was called with
        self._wider: dict[int, tuple[Tensor, Tensor]] = {}
        self._is_idle = False
        if path is not None:
            blocks: Any = model.get_submodule(path)
            for index, block in enumerate(blocks):
                # PyTorch calls hooks in the order in which they were registered: these come before the variants' own,
                # which look for the rows that these append.
                before, after = ([i for i, point in enumerate(points) if point == (index, side)] for side in SIDES)
                enter = block.register_forward_pre_hook(partial(self._enter, before), with_kwargs=True)
                scope.callback(enter.remove)
                if after:
                    scope.callback(block.register_forward_hook(partial(self._leave, after)).remove)
        self._attachments = [Attachment(model, variant, scope) for variant in variants]
        firsts = [variant.first for variant in variants if variant.first is not None]
        # Rows that are copies of the baseline's are encoded once for all variants that begin with the same dictionary.
        self._encodes_once = not self._starting and len({splice.reads for splice in firsts}) < len(firsts)

    def begin(self, context: Context, watch: SpliceWatch | None = None) -> None:
        """Before each pass through the trunk; `watch` is called at each splice of the first variant."""
        self._rows = context.input_ids.shape[0]
        self._called_with = self._rows * self.copies
        self._order, self._wider = [], {}
        context.reconstructed = {} if self._encodes_once else None
        for number, attachment in enumerate(self._attachments):
            attachment.begin(context, watch if number == 0 else None)
        self._append(self._starting)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Inside the scope nothing is appended: the model runs on the baseline's rows alone, untouched by the fork."""
        self._is_idle = True
        try:
            yield
        finally:
            self._is_idle = False

    def in_order(self, hidden: Tensor) -> Tensor:
        """(1 + variants, rows, ...), from the trunk's output (all rows, ...)."""
        groups = hidden.unflatten(0, (-1, self._rows))
        order = self.groups()
        return groups if order == sorted(order) else groups[order]

    def groups(self) -> list[int]:
        """Which group of rows is the baseline's and each variant's, in the order in which they were appended.

        In a layer that has fewer groups, a variant has not been forked yet and its rows are the baseline's, group 0.
        """
        place = {variant: group for group, variant in enumerate(self._order, start=1)}
        return [0, *(place.get(variant, 0) for variant in range(len(self._attachments)))]

    def _append(self, variants: Sequence[int]) -> None:
        for variant in variants:
            self._order.append(variant)
            self._attachments[variant].rows = slice(self._rows * len(self._order), self._rows * (len(self._order) + 1))

    def _fork(self, hidden: Tensor, variants: Sequence[int]) -> Tensor:
        if not variants or self._is_idle:
            return hidden
        self._append(variants)
        self._wider.clear()
        return torch.cat([hidden, *[hidden[: self._rows]] * len(variants)])

    def _enter(self, variants: Sequence[int], _block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if self._is_idle:
            return args, kwargs
        if args:
            hidden, rest, keywords = self._fork(args[0], variants), args[1:], kwargs
            return (hidden, *(self._widen(value) for value in rest)), {k: self._widen(v) for k, v in keywords.items()}
        hidden = self._fork(kwargs["hidden_states"], variants)
        return (), {k: hidden if k == "hidden_states" else self._widen(v) for k, v in kwargs.items()}

    def _leave(self, variants: Sequence[int], _block: nn.Module, _args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._fork(output[0], variants), *output[1:])
        return self._fork(output, variants)

    def _widen(self, value: Any) -> Any:
        """What goes with every row (masks, positions) for the rows appended so far; size 1 is left to broadcasting.

        A block is given tensors that were made for the batch that the trunk was called with, and knows nothing of rows
        that were appended since. That a tensor goes with the rows is told by its first axis alone, for which reason
        batches avoid the sizes at which another axis would look like it.
        """
        if isinstance(value, tuple):
            return tuple(self._widen(part) for part in value)
        extra = 1 + len(self._order) - self.copies
        if not extra or not isinstance(value, Tensor) or value.ndim < 2 or len(value) != self._called_with:
            return value
        if len(value) == 1:
            return value
        # Every block is given the same tensors: they are held, so that their ids stay theirs.
        _, wider = self._wider.get(id(value), (value, None))
        if wider is None:
            wider = torch.cat([value, *[value[: self._rows]] * extra])
            self._wider[id(value)] = (value, wider)
        return wider


SIDES: tuple[Literal["input", "output"], ...] = ("input", "output")


def fork_point(variant: Variant, blocks: str | None) -> Point:
    """Before the first of the variant's sites in a forward pass, as late as rows can be appended."""
    if variant.is_apart:
        return START
    edited = [ModuleSide(edit.path, "input") for edit in variant.edits]
    return earliest([point_of(side, blocks) for side in (*(s.site_out.write for s in variant.splices), *edited)])


def earliest(points: Sequence[Point]) -> Point:
    """The first in a forward pass; the start where there are none."""
    if not points or START in points:
        return START
    return min(points, key=lambda point: (point.block, point.side))


def point_of(port: ModuleSide | None, blocks: str | None) -> Point:
    """The latest point before `port` at which rows can be appended; `blocks` is the path of the list of blocks."""
    assert port is not None, "resolve the site with writable_port first"
    if blocks is None or not (match := re.fullmatch(rf"{re.escape(blocks)}\.(\d+)(\..+)?", port.path)):
        return START
    is_block = match[2] is None
    return Point(int(match[1]), "output" if is_block and port.side == "output" else "input")
