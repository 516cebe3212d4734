"""One side of one module of a model: reading what passes there, and changing it."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing import norms

Side = Literal["input", "output", "normalized"]


@dataclass(frozen=True)
class ModuleSide:
    """`path` is as in `model.get_submodule`.

    The side "normalized" is the input of a norm after centring and scaling, before its gain and bias; it can
    be read, not written.
    """

    path: str
    side: Side

    def __str__(self) -> str:
        return f"{self.path}.{self.side}"


def has_module(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def hook_side(model: nn.Module, port: ModuleSide, function: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `function` with what passes `port`; what it returns, if not None, takes its place.

    Attention modules return tuples and Llama's receive their input by keyword: both are handled here.
    """
    module = model.get_submodule(port.path)
    if port.side == "output":
        return module.register_forward_hook(_on_output(function))
    if port.side == "normalized":
        return module.register_forward_pre_hook(_on_input(_behind_norm(module, function)), with_kwargs=True)
    return module.register_forward_pre_hook(_on_input(function), with_kwargs=True)


def _behind_norm(norm: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
    kinds: list[norms.Normalisation] = []  # once it is known how wide the norm is

    def of_input(x: Tensor) -> Tensor | None:
        if not kinds:
            kinds.append(norms.measured(norm, x.shape[-1]))
        return function(kinds[0](x))

    return of_input


def _on_output(function: Callable[[Tensor], Tensor | None]):
    def hook(module, _args, output):
        if isinstance(output, Tensor):
            return function(output)
        # An index into a plain tensor would take the first row of the batch.
        if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
            new = function(output[0])
            return None if new is None else type(output)([new, *output[1:]])
        # What transformers calls a model output; its first entry is the hidden states or the logits.
        if isinstance(output, OrderedDict) and output and isinstance(first := next(iter(output.values())), Tensor):
            new = function(first)
            return None if new is None else type(output)(**{**output, next(iter(output)): new})
        raise UserError(f"A {type(module).__name__} gives a {type(output).__name__}, which holds no activation.")

    return hook


def _on_input(function: Callable[[Tensor], Tensor | None]):
    def hook(module, args, kwargs):
        if args:
            new = function(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        name = _activation_of(kwargs)
        if name is None:
            raise UserError(f"A {type(module).__name__} is given no activation that could be spliced.")
        new = function(kwargs[name])
        return None if new is None else (args, {**kwargs, name: new})

    return hook


def _activation_of(kwargs: dict[str, Any]) -> str | None:
    """The argument that holds activations: `hidden_states` where there is one, else the first tensor of numbers."""
    tensors = (name for name, value in kwargs.items() if isinstance(value, Tensor) and value.is_floating_point())
    return "hidden_states" if "hidden_states" in kwargs else next(tensors, None)


@torch.no_grad()
def record_activations(model: nn.Module, ports: list[ModuleSide], input_ids: Tensor) -> dict[ModuleSide, Tensor]:
    """What passes `ports` when the model reads `input_ids` (batch, positions); a port nothing passes is left out."""
    seen: dict[ModuleSide, Tensor] = {}
    with ExitStack() as scope:
        for port in ports:
            scope.callback(hook_side(model, port, partial(seen.__setitem__, port)).remove)
        # Nobody looks at the logits, and those of a whole window take gigabytes where the vocabulary is large.
        model(input_ids=input_ids, **keeping_last(model, 1))
    return seen


def keeping_last(model: nn.Module, positions: int) -> dict[str, int]:
    """The argument by which a model computes the logits of its last positions only, where it has one."""
    return {"logits_to_keep": positions} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
