"""Modules of a model that run with other weights, or as other modules, for some rows of a batch, in a scope."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.patching import instead


@dataclass(frozen=True, eq=False)
class ModuleEdit:
    """What becomes of the module at `path`: other `weights`, by its own names, or a `replacement` called as it is.

    With neither, what enters the module, a block, is what leaves it. It runs all the same, so that caches are filled.
    One that `is_apart` stands for what cannot run twice in a pass, as the head or a whole attention module.
    """

    path: str
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    replacement: Callable[..., Any] | None = None
    is_apart: bool = False

    @property
    def is_skip(self) -> bool:
        return not self.weights and self.replacement is None

    def __call__(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the edited module gives; `forward` is the module's own."""
        if self.replacement is not None:
            return self.replacement(*args, **kwargs)
        with other_weights(module, self.weights):
            return forward(*args, **kwargs)


@contextmanager
def other_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the scope, parameters of a module are others; after it they are the very same as before."""
    own: Any = module._parameters
    before = {name: own[name] for name in weights}
    try:
        own.update(weights)
        yield
    finally:
        own.update(before)


class Rows:
    """Which rows of the batch run as a variant, and how many positions each has in the pass under way."""

    def __init__(self) -> None:
        self.rows = slice(None)
        self.positions = 0


# An edited module and what lies in it is given a part of the batch: the row at which that part begins.
_first_row: ContextVar[int] = ContextVar("first_row", default=0)


def rows_given(rows: slice, count: int) -> slice:
    """Where `rows` of the whole batch lie among the `count` that a module is given; empty where it is given others."""
    first = _first_row.get()
    start = (rows.start or 0) - first
    stop = count if rows.stop is None else rows.stop - first
    return slice(min(max(start, 0), count), min(max(stop, 0), count))


def attach_edits(model: nn.Module, edits: Sequence[ModuleEdit], rows: Rows, scope: ExitStack) -> None:
    """Inside `scope`, the rows of the batch that `rows` names run through the edited modules, all others as ever.

    Where one of the edits is apart, `rows` has to be all of the batch.
    """
    is_apart = any(edit.is_apart for edit in edits)
    for edit in edits:
        module = model.get_submodule(edit.path)
        if edit.is_skip:
            scope.callback(module.register_forward_hook(partial(_skipped, rows), with_kwargs=True).remove)
        elif is_apart:
            scope.enter_context(instead(module, "forward", partial(edit, module, module.forward)))
        else:
            _enter(module, edit, rows, scope)


def _enter(module: nn.Module, edit: ModuleEdit, rows: Rows, scope: ExitStack) -> None:
    own: dict[str, Any] = module.__dict__
    had = own.get("forward")
    if not isinstance(had, EditedForward):
        had_one = "forward" in own
        own["forward"] = EditedForward(module, module.forward)
        scope.callback(partial(own.__setitem__, "forward", had) if had_one else partial(own.pop, "forward"))
    edited: EditedForward = own["forward"]
    edited.entries.append((rows, edit))
    scope.callback(edited.entries.remove, (rows, edit))


class EditedForward:
    """The forward pass of a module, of which the rows of some variants go through their edits of it."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self.module, self.forward = module, forward
        self.entries: list[tuple[Rows, ModuleEdit]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = _first(args, kwargs)
        length, unit = len(given), _unit(given, self.entries[0][0])
        parts: list[tuple[slice, ModuleEdit | None]] = []
        start = 0
        for rows, edit in sorted(self.entries, key=lambda entry: entry[0].rows.start or 0):
            here = rows_given(rows.rows, length // unit)
            own = slice(here.start * unit, here.stop * unit)
            if own.start == own.stop:
                continue
            parts += [(slice(start, own.start), None)] if own.start > start else []
            parts.append((own, edit))
            start = own.stop
        parts += [(slice(start, length), None)] if start < length or not parts else []
        outs, first = [], _first_row.get()
        for part, edit in parts:
            begun = _first_row.set(first + part.start // unit)
            try:
                outs.append(self._run(edit, length, part, args, kwargs))
            finally:
                _first_row.reset(begun)
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _run(self, edit: ModuleEdit | None, length: int, part: slice, args: tuple, kwargs: dict[str, Any]) -> Any:
        whole = part == slice(0, length)
        narrowed = partial(_narrowed, length=length, part=part)
        own_args = args if whole else tuple(map(narrowed, args))
        own_kwargs = kwargs if whole else {name: narrowed(value) for name, value in kwargs.items()}
        if edit is None:
            return self.forward(*own_args, **own_kwargs)
        return edit(self.module, self.forward, *own_args, **own_kwargs)


def _first(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if tensor is None:
        raise UserError("A module that is to be edited is given no tensor.")
    return tensor


def _unit(given: Tensor, rows: Rows) -> int:
    """How many entries of the first axis are one row: some modules see rows and positions as one axis.

    Raises `UserError` where they are neither, as an expert's, which is given the tokens that were sent to it.
    """
    if given.ndim > 2 or not given.is_floating_point():
        return 1
    if len(given) % rows.positions:
        raise UserError(
            f"A module that is to be edited is given {len(given)} tokens of rows of {rows.positions}: it runs on some "
            "tokens alone, and which are whose cannot be told. Edit the module around it."
        )
    return rows.positions


def _narrowed(value: Any, *, length: int, part: slice) -> Any:
    return value[part] if isinstance(value, Tensor) and value.ndim and len(value) == length else value


def _skipped(rows: Rows, _block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    hidden = output if isinstance(output, Tensor) else output[0]
    entered = args[0] if args else kwargs["hidden_states"]
    own = rows_given(rows.rows, len(hidden))
    if own == slice(0, len(hidden)):
        new = entered
    else:
        new = hidden.clone()
        new[own] = entered[own].to(new.device)
    return new if isinstance(output, Tensor) else type(output)([new, *output[1:]])


class Edited(nn.Module):
    """The tensors and modules of some edits, as one module for whatever looks at the content of modules."""

    def __init__(self, edits: Sequence[ModuleEdit]) -> None:
        super().__init__()
        self.paths = [edit.path for edit in edits]
        for number, edit in enumerate(edits):
            for name, tensor in edit.weights.items():
                self.register_buffer(f"{number}_{name}", tensor)
            if isinstance(edit.replacement, nn.Module):
                self.add_module(str(number), edit.replacement)

    @staticmethod
    def functions(edits: Sequence[ModuleEdit]) -> tuple[Callable[..., Any], ...]:
        """Replacements that are no modules, and decide as much as these."""
        replacements = (edit.replacement for edit in edits)
        return tuple(
            replacement
            for replacement in replacements
            if replacement is not None and not isinstance(replacement, nn.Module)
        )
