"""Copies of what the user handed over: a dictionary is cast, moved and switched to evaluation, and theirs is not."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Memo = dict[int, Any]  # what each object became, by its id, as `copy.deepcopy` keeps it


def snapshot(module: nn.Module) -> tuple[nn.Module, Memo]:
    """A copy of a module in eval mode, which no training touches, and what each object inside became.

    Functions among its attributes and hooks that close over a part of it close over the copy's.
    """
    memo: Memo = {}
    parts = set(module.modules())
    for part in parts:
        for name, value in (*part._parameters.items(), *part._buffers.items(), *vars(part).items()):
            if isinstance(value, Tensor):  # which may be in a graph, and cannot be copied by themselves then
                plain = value.detach().clone()
                memo[id(value)] = nn.Parameter(plain, False) if name in part._parameters else plain
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
            if getattr(hook, "__self__", None) not in parts:
                memo[id(hook)] = hook  # not whatever it belongs to
    duplicate = copy.deepcopy(module, memo)
    for part in duplicate.modules():
        every: Any = (vars(part), part._forward_pre_hooks, part._forward_hooks)
        for attributes in every:
            for name, value in attributes.items():
                if isinstance(value, types.FunctionType):
                    attributes[name] = rebound(value, memo)
    return duplicate.eval(), memo


def rebound(function: Any, memo: Memo) -> Any:
    """`function` with copies in the place of the objects that it closes over, belongs to, or finds as globals."""
    if isinstance(function, types.FunctionType | types.MethodType | functools.partial):
        return _rebound(function, memo, set())
    return copy.deepcopy(function, memo)


def _rebound(value: Any, memo: Memo, met: set[int]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if id(value) in met:
        return value
    met.add(id(value))
    again: Callable[[Any], Any] = functools.partial(_rebound, memo=memo, met=met)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, again(value.__self__))
    if isinstance(value, functools.partial):
        return functools.partial(
            again(value.func), *map(again, value.args), **{k: again(v) for k, v in value.keywords.items()}
        )
    if not isinstance(value, types.FunctionType):
        return value
    cells = tuple(_cell(cell, again) for cell in value.__closure__ or ())
    named = {name: again(value.__globals__[name]) for name in value.__code__.co_names if name in value.__globals__}
    named = {name: new for name, new in named.items() if new is not value.__globals__[name]}
    if not named and all(new is old for new, old in zip(cells, value.__closure__ or (), strict=True)):
        return value
    scope = {**value.__globals__, **named} if named else value.__globals__
    function = types.FunctionType(value.__code__, scope, value.__name__, value.__defaults__, cells)
    for attribute in ("__kwdefaults__", "__qualname__", "__module__"):
        setattr(function, attribute, getattr(value, attribute))
    return function


def _cell(cell: types.CellType, again: Callable[[Any], Any]) -> types.CellType:
    try:
        old = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    new = again(old)
    return cell if new is old else types.CellType(new)
