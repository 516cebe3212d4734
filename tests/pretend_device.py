"""A device that only pretends: its tensors say that they are on `pretend:0` or `:1`, and are computed on the CPU.

What would break on a GPU breaks here: an operator that is given tensors of two devices raises. What would wait for a
GPU is counted: copies to the host, numbers read, and operators whose output's shape depends on values. torch lets a
private device be set up from Python since 2.9.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "pretend"
WAITS: Counter[str] = Counter()  # what a GPU would have to be waited for, by kind, since the scope began
SHAPED_BY_VALUES = ("nonzero", "masked_select", "_unique2", "unique_consecutive", "repeat_interleave")


def number_of(device: Any) -> int | None:
    """Of a pretended device; None is any other one."""
    if isinstance(device, int):  # a number is of the accelerator
        return device
    device = None if device is None else torch.device(device)
    return None if device is None or device.type != NAME else device.index or 0


class PretendTensor(torch.Tensor):
    """A tensor that says it is on the pretended device; `inner` is the one that it stands for."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, number: int) -> PretendTensor:
        out: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, number),
            requires_grad=inner.requires_grad,
        )
        out.inner, out.number = inner, number
        return out

    def __init__(self, inner: torch.Tensor, number: int) -> None:
        pass

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.inner!r})"

    def tolist(self) -> Any:
        WAITS["tolist"] += 1
        return self.inner.tolist()

    def numpy(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def inner_of(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


def pretending(out: Any, number: int) -> Any:
    return tree_map(lambda value: PretendTensor(value, number) if type(value) is torch.Tensor else value, out)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator gives, computed on the CPU."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    here = [value for value in tensors if isinstance(value, PretendTensor)]
    name = func.overloadpacket.__name__
    if name == "_local_scalar_dense":
        if here:
            WAITS["item"] += 1
        return func(*map(inner_of, args))
    if name == "_to_copy":
        return copied(func, args, kwargs)
    if name == "copy_":
        if isinstance(args[0], PretendTensor) != isinstance(args[1], PretendTensor):
            WAITS["copy to host" if isinstance(args[1], PretendTensor) else "copy to device"] += 1
        func(*map(inner_of, args), **kwargs)
        return args[0]
    to = number_of(kwargs.get("device"))
    if not here:
        return func(*args, **kwargs) if to is None else pretending(func(*args, **{**kwargs, "device": "cpu"}), to)
    elsewhere = [value for value in tensors if not isinstance(value, PretendTensor) and value.dim() > 0]
    devices = {str(value.device) for value in [*here, *([] if "index" in name else elsewhere)] if value.dim() > 0}
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {sorted(devices)}: {func}")
    if elsewhere:
        WAITS["index on the host"] += 1
    if name in SHAPED_BY_VALUES or (name == "index" and has_mask(args)):
        WAITS[name] += 1
    plain, options = tree_map(inner_of, (args, kwargs))
    if options.get("device") is not None:
        out = func(*plain, **{**options, "device": "cpu"})
        return out if to is None else pretending(out, to)
    out = func(*plain, **options)
    for before, after in zip(args, plain, strict=True):
        if isinstance(before, PretendTensor) and out is after:
            return before  # in place
    return pretending(out, here[0].number)


def has_mask(args: Any) -> bool:
    """Whether a tensor is indexed by a mask, whose true places have to be counted."""
    return any(index is not None and index.dtype == torch.bool for index in args[1])


def copied(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """To another device or dtype."""
    value, device = args[0], kwargs.get("device")
    number = value.number if isinstance(value, PretendTensor) else None
    to = number if device is None else number_of(device)
    if number != to:
        WAITS["copy to host" if to is None else "copy to device"] += 1
    out = func(inner_of(value), **{name: option for name, option in kwargs.items() if name != "device"})
    out = out.clone() if out is inner_of(value) else out
    return out if to is None else PretendTensor(out, to)


class Operators(TorchDispatchMode):
    """Operators without a tensor of the device among their inputs: factories, and copies to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Factories(TorchFunctionMode):
    """What makes tensors of Python values, below the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and args:
            if isinstance(args[0], PretendTensor) and kwargs.get("device") is None:
                return args[0].clone() if func is torch.tensor else args[0]
            number = number_of(kwargs.get("device"))
            if number is not None and not isinstance(args[0], torch.Tensor):
                WAITS["copy to device"] += 1
                return PretendTensor(func(*args, **{**kwargs, "device": "cpu"}), number)
        if func is torch.Tensor.new_tensor and isinstance(args[0], PretendTensor):
            WAITS["copy to device"] += 1
            return PretendTensor(torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype), args[0].number)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], PretendTensor):
            args = (args[0], with_tensors(args[1]), *args[2:])
        return func(*args, **kwargs)


def with_tensors(index: Any) -> Any:
    """An index whose lists are tensors, as torch makes them of lists below Python."""
    if isinstance(index, tuple):
        return tuple(with_tensors(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


@contextlib.contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Inside the scope there is the device, and modules can be moved to it with `.to`."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]  # asked for by autocast, enabled or not
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    WAITS.clear()
    try:
        with Factories(), Operators():
            yield torch.device(NAME, 0)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def on_host(module: nn.Module) -> list[str]:
    """Names of parameters and buffers that are not on the device."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, value in named if not isinstance(value, PretendTensor)]
