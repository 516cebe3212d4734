"""One side of one module of a model: reading what passes there, and changing it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Side = Literal["input", "output", "normalized"]


@dataclass(frozen=True)
class Port:
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


def normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + eps) for LayerNorm, x / sqrt(mean(x^2) + eps) for RMSNorm; float32, last axis."""
    x = x.float()
    if isinstance(norm, nn.LayerNorm):
        return nn.functional.layer_norm(x, x.shape[-1:], eps=norm.eps)
    eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None) or 1e-6
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def on_port(model: nn.Module, port: Port, function: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call `function` with what passes `port`; what it returns, if not None, takes its place.

    Attention modules return tuples and Llama's receive their input by keyword: both are handled here.
    """
    module = model.get_submodule(port.path)
    if port.side == "output":
        return module.register_forward_hook(_on_output(function))
    if port.side == "normalized":
        return module.register_forward_pre_hook(_on_input(lambda x: function(normalized(module, x))), with_kwargs=True)
    return module.register_forward_pre_hook(_on_input(function), with_kwargs=True)


def _on_output(function: Callable[[Tensor], Tensor | None]):
    def hook(_module, _args, output):
        # An index into a plain tensor would take the first row of the batch.
        new = function(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def _on_input(function: Callable[[Tensor], Tensor | None]):
    def hook(_module, args, kwargs):
        if args:
            new = function(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = function(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    return hook


@torch.no_grad()
def record(model: nn.Module, ports: list[Port], input_ids: Tensor) -> dict[Port, Tensor]:
    """What passes `ports` when the model reads `input_ids` (batch, positions); a port nothing passes is left out."""
    seen: dict[Port, Tensor] = {}
    # Nobody looks at the logits, and those of a whole window take gigabytes where the vocabulary is large.
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with ExitStack() as scope:
        for port in ports:
            scope.callback(on_port(model, port, lambda x, port=port: seen.update({port: x})).remove)
        model(input_ids=input_ids, **few)
    return seen
