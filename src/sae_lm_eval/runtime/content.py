"""What decides the output of a module: its tensors, its settings, and the hooks that stand on it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from sae_lm_eval.runtime.checksum import checksums

DEEPEST = 12  # of objects inside objects
OF_TORCH = frozenset(vars(nn.Module()))
# Attributes of modules that say nothing of what they compute: names, devices, and what libraries write down.
ASIDE = frozenset({"name_or_path", "warnings_issued", "hf_device_map", "device"})
PRIVATE = ("_active_adapter", "_disable_adapters", "_use_error_term")  # that decide, although they look private
UNTOLD = frozenset(
    {"_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "_from_model_config"}
    | {"device"}
    | {"_original_object_hash"}  # of texts, which Python hashes otherwise in each process
)
WATCHING = "transformers.utils.output_capturing"  # whose hooks a model gets once it is asked for hidden states
LIBRARIES = ("torch", "transformers", "accelerate", "peft")  # whose functions their names stand for
RECOMPUTED = ("dynamic", "longrope")  # kinds of rotary tables that depend on the text read last


@dataclasses.dataclass(frozen=True)
class Content:
    """Of a module, 32 hexadecimal digits each.

    `weights` are of parameters and of buffers that are saved, `computed` of buffers that are made anew wherever the
    module is loaded (they may differ in the last bit from device to device), `settings` of classes, attributes,
    configurations and hooks.
    """

    weights: str
    computed: str
    settings: str


def contents(
    modules: Mapping[str, nn.Module], functions: Mapping[str, Sequence[Callable[..., Any]]] | None = None
) -> dict[str, Content]:
    """What decides the output of each module in eval mode, with one transfer from each device in all.

    `functions` are those that a module of that name is called through, and count among its settings.

    Hooks count with the code of their functions, the values that these close over, and the globals that they name. One
    that holds what cannot be looked into gives another value each time, so that nothing is remembered for it.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    settings: dict[str, str] = {}
    for name, module in modules.items():
        description = _Description()
        parts = [
            description.module(module),
            description.everywhere(),
            description.functions((functions or {}).get(name, ())),
        ]
        settings[name] = json.dumps(parts, sort_keys=True)
        saved, computed = _tensors(module)
        groups |= {f"{name} weights": saved, f"{name} computed": computed, f"{name} settings": description.tensors}
    digests = checksums(groups)
    out = {}
    for name in modules:
        digest = hashlib.blake2b(settings[name].encode(), digest_size=16)
        digest.update(digests[f"{name} settings"].encode())
        out[name] = Content(digests[f"{name} weights"], digests[f"{name} computed"], digest.hexdigest())
    return out


def _tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers that are saved, and those that are not."""
    saved, computed = {}, {}
    for path, part in module.named_modules(remove_duplicate=False):
        offloaded = getattr(getattr(part, "_hf_hook", None), "weights_map", None)
        depends = _depends_on_the_text(part)
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is None or (depends and "inv_freq" in name and not name.startswith("original")):
                continue
            if tensor.device.type == "meta" and offloaded is not None:
                tensor = offloaded[name]
            target = computed if name in part._non_persistent_buffers_set else saved
            target[f"{path}.{name}"] = tensor
    return saved, computed


def _depends_on_the_text(part: nn.Module) -> bool:
    return any(kind in str(getattr(part, "rope_type", "")) for kind in RECOMPUTED)


class _Description:
    """Plain values for modules, settings and functions; `tensors` are those that were met among them."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._met: dict[int, tuple[int, Any]] = {}  # with the object, so that its id stays its own

    def everywhere(self) -> list[Any]:
        """The hooks of all modules of the process."""
        every = (torch_modules._global_forward_pre_hooks, torch_modules._global_forward_hooks)
        return [self._value(hook, 0, strict=True) for hooks in every for hook in hooks.values()]

    def functions(self, functions: Sequence[Callable[..., Any]]) -> list[Any]:
        return [self._value(function, 0, strict=True) for function in functions]

    def module(self, module: nn.Module, depth: int = 0) -> Any:
        """Inside another description, at a `depth`, its tensors count as settings."""
        if (number := self._number(module)) is not None:
            return number
        out = []
        for path, part in module.named_modules():
            if part is not module and self._number(part) is not None:
                continue
            depends = _depends_on_the_text(part)
            settings = {
                name: self._value(value, depth + 1, strict=False)
                for name, value in vars(part).items()
                if name not in OF_TORCH
                and name not in ASIDE
                and (not name.startswith("_") or name in PRIVATE)
                and not (depends and name in ("max_seq_len_cached", "attention_scaling"))
            }
            hooks = [
                [self._value(hook, depth + 1, strict=True), key in of_kind]
                for kind, of_kind in (
                    (part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs),
                    (part._forward_hooks, part._forward_hooks_with_kwargs),
                )
                for key, hook in kind.items()
                if getattr(hook, "__module__", None) != WATCHING
            ]
            own = [*part._parameters.values(), *part._buffers.values()] if depth else []
            out.append([path, _name(type(part)), settings, hooks, self._value(own, depth + 1, strict=False)])
        return out

    def _number(self, thing: Any) -> Any:
        """Of something that was met before; None for something new, which gets one."""
        if (met := self._met.get(id(thing))) is not None:
            return ["as above", met[0]]
        self._met[id(thing)] = len(self._met), thing
        return None

    def _value(self, value: Any, depth: int, *, strict: bool) -> Any:
        """`strict` is whether an object that cannot be looked into decides as much as any other."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float | complex | bytes | enum.Enum | PurePath | torch.dtype | torch.Size | range | slice):
            return repr(value)
        if isinstance(value, Tensor):
            name = f"{len(self.tensors)}"
            self.tensors[name] = value
            return ["tensor", name]
        if isinstance(value, np.ndarray | np.generic):
            return ["array", str(value.dtype), value.shape, hashlib.blake2b(value.tobytes()).hexdigest()]
        if isinstance(value, types.ModuleType | type | types.BuiltinFunctionType | torch.device | torch.Generator):
            return _name(value) if not isinstance(value, torch.device | torch.Generator) else type(value).__name__
        if depth > DEEPEST:
            return self._opaque(value, strict)
        if isinstance(value, nn.Module):
            return self.module(value, depth + 1)
        if (number := self._number(value)) is not None:
            return number
        return self._inside(value, depth + 1, strict)

    def _inside(self, value: Any, depth: int, strict: bool) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value, depth, strict)
        if isinstance(value, types.MethodType):
            owner = self._value(value.__self__, depth, strict=strict)
            return ["method", owner, self._value(value.__func__, depth, strict=strict)]
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return ["partial", *(self._value(part, depth, strict=strict) for part in parts)]
        if isinstance(value, Mapping):
            pairs = [[str(k), self._value(v, depth, strict=strict)] for k, v in value.items() if k not in UNTOLD]
            return ["mapping", sorted(pairs, key=lambda pair: pair[0])]
        if isinstance(value, list | tuple):
            return [self._value(each, depth, strict=strict) for each in value]
        if isinstance(value, set | frozenset):
            return [
                "set",
                sorted(json.dumps(self._value(each, depth, strict=strict), sort_keys=True) for each in value),
            ]
        is_settings = dataclasses.is_dataclass(value) or hasattr(value, "to_dict")
        if hasattr(value, "__dict__") and (strict or is_settings):
            return [_name(type(value)), self._value(vars(value), depth, strict=strict)]
        return self._opaque(value, strict)

    def _function(self, function: types.FunctionType, depth: int, strict: bool) -> Any:
        name = _name(function)
        if name.partition(".")[0] in LIBRARIES:
            return name
        around = []
        for cell in function.__closure__ or ():
            try:
                around.append(self._value(cell.cell_contents, depth, strict=strict))
            except ValueError:  # a cell that is not filled yet
                around.append(None)
        named = {
            name: self._value(function.__globals__[name], depth, strict=strict)
            for name in sorted(_names(function.__code__) & function.__globals__.keys())
        }
        defaults = self._value([function.__defaults__, function.__kwdefaults__], depth, strict=strict)
        return ["function", name, _code(function.__code__), defaults, around, named]

    def _opaque(self, value: Any, strict: bool) -> Any:
        return [_name(type(value)), uuid.uuid4().hex] if strict else _name(type(value))


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', getattr(thing, '__name__', ''))}"


def _code(code: types.CodeType) -> str:
    """A hash of what a function does, wherever it is written."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    what = [code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars]
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=16).hexdigest()


def _constant(value: Any) -> str:
    # The order of a set of texts differs from process to process.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _names(code: types.CodeType) -> set[str]:
    """The global names that a function and those inside it read."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)
