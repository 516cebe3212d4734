"""Modules and functions of the user's own as dictionaries: whatever maps activations to activations."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.sequential import attends_over_positions
from sae_lm_eval.dictionaries.snapshots import snapshot
from sae_lm_eval.dictionaries.trial import POSITIONS, ROWS, tried
from sae_lm_eval.errors import UserError, first_line

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "sae_lens", "sae_lm_eval")  # their versions are recorded
READS_RAW = "it is given the Hugging Face model's own activations"


class OwnModule(nn.Module):
    """A module or function of the user's: activations (rows, positions, d_in) to (rows, positions, d_out).

    It computes in the dtype and on the device that this module is cast and moved to, whether or not it has parameters.
    `source` is a checksum of the text that it was made by, where that is known.
    """

    place: Tensor

    def __init__(self, inner: Callable[[Tensor], Any], source: str | None = None) -> None:
        super().__init__()
        self._inner = inner
        self.source = source
        self.register_buffer("place", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._checked(self._inner(x), x, "makes")

    def latents(self, x: Tensor) -> Tensor:
        """What `encode` of the user's object gives, (rows, positions, d_dictionary)."""
        return self._checked(self._inner.encode(x), x, "encodes")  # pyright: ignore[reportFunctionMemberAccess]

    def decoded(self, latents: Tensor) -> Tensor:
        """What `decode` of the user's object gives of latents, (rows, positions, d_out)."""
        return self._checked(self._inner.decode(latents), latents, "decodes")  # pyright: ignore[reportFunctionMemberAccess]

    def _checked(self, out: Any, x: Tensor, verb: str) -> Tensor:
        name = name_of(self._inner)
        if not isinstance(out, Tensor):
            raise UserError(f"{name} {verb} a {type(out).__name__} of activations: it must give one tensor.")
        if out.ndim != x.ndim or out.shape[:-1] != x.shape[:-1] or not out.shape[-1]:
            wanted = ", ".join([*map(str, x.shape[:-1]), "width"])
            raise UserError(
                f"{name} {verb} {tuple(out.shape)} of activations {tuple(x.shape)}: it must give ({wanted})."
            )
        return out


def name_of(own: Any) -> str:
    """What a module or function is called where it is named."""
    named = own if isinstance(own, types.FunctionType) else type(own)
    return f"<{named.__qualname__.rpartition('.')[2].strip('<>')}>"


def from_own(own: Callable[[Tensor], Any], *, name: str | None = None, source: str | None = None) -> Dictionary:
    """`own` as a `Dictionary` whose widths are found where it is placed: see `placed`.

    A module is copied; a function is taken as it is. Its latents are what its `encode` gives, where it has one.

    Raises `UserError` where it cannot be copied.
    """
    wrapped = OwnModule(own, source)
    try:
        module, _ = snapshot(wrapped)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise UserError(f"{name or name_of(own)} cannot be copied: {first_line(error)}") from error
    assert isinstance(module, OwnModule)
    encodes, decodes = (callable(getattr(module._inner, name, None)) for name in ("encode", "decode"))
    return Dictionary(
        name=name or name_of(own),
        module=module,
        reconstruct=module.forward,
        encode=module.latents if encodes else None,
        decode=module.decoded if encodes and decodes else None,
        architecture=name_of(own)[1:-1],
        d_in=None,
        d_out=None,
        d_dictionary=None,
        hook_in=None,
        hook_out=None,
        code=tuple(code_of(own)),
        sequential=attends_over_positions(module),
        processing_source=READS_RAW,
    )


def code_of(own: Any) -> Iterator[Callable[..., Any]]:
    """The functions by which an object computes: itself, and those of the classes that it is made of."""
    if not isinstance(own, nn.Module):
        yield own
    parts = [part for obj in _objects(own) for part in (obj.modules() if isinstance(obj, nn.Module) else [obj])]
    for cls in dict.fromkeys(cls for part in parts for cls in type(part).__mro__):
        if cls.__module__.partition(".")[0] not in (*LIBRARIES, "builtins", "functools", "abc"):
            for _, member in sorted(vars(cls).items()):
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if isinstance(function, types.FunctionType):
                    yield function


def _objects(own: Any) -> Iterator[Any]:
    """`own`, what it is bound to, and the modules that it closes over or finds as globals."""
    yield own
    if isinstance(own, types.MethodType):
        yield from _objects(own.__self__)
    elif isinstance(own, functools.partial):
        yield from _objects(own.func)
    elif isinstance(own, types.FunctionType):
        around = inspect.getclosurevars(own)
        values = (*around.nonlocals.values(), *around.globals.values())
        yield from (value for value in values if isinstance(value, nn.Module))


@torch.no_grad()
def placed(dictionary: Dictionary, d_in: int, d_out: int, device: torch.device) -> Dictionary:
    """The dictionary with the widths that running it once shows, between a site of width `d_in` and one of `d_out`.

    Raises `UserError` where it fails on activations of that width, changes them in place, makes nan of them, makes
    another width than `d_out`, or depends on the other sequences of a batch.
    """
    dictionary.module.to(device=device)
    generator = torch.Generator(device="cpu").manual_seed(0)
    activations = torch.randn(ROWS, POSITIONS, d_in, generator=generator, device="cpu").to(device, dictionary.dtype)
    out = _run(dictionary, dictionary.reconstruct, activations)
    if out.shape[-1] != d_out:
        raise UserError(
            f"{dictionary.name} makes {out.shape[-1]} values a position of {d_in}, where {d_out} are to be replaced: "
            f"a module that reads elsewhere than it writes takes hook=IN:OUT."
        )
    latents = None if dictionary.encode is None else _run(dictionary, dictionary.encode, activations)
    sized = replace(dictionary, d_in=d_in, d_out=d_out, d_dictionary=None if latents is None else latents.shape[-1])
    try:
        return tried(sized)
    except UserError:
        raise
    except Exception as error:  # of the user's own code, whatever it raises
        raise _failed(dictionary, activations, error) from error


def _run(dictionary: Dictionary, function: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    x = given.clone()
    try:
        out = function(x)
    except UserError:
        raise
    except Exception as error:  # of the user's own code, whatever it raises
        raise _failed(dictionary, given, error) from error
    if not torch.equal(x, given):
        raise UserError(
            f"{dictionary.name} changes the activations that it is given in place, which the untouched model reads "
            f"too: let it make a new tensor."
        )
    if not out.isfinite().all():
        raise UserError(f"{dictionary.name} makes values of random activations that are not finite.")
    return out


def _failed(dictionary: Dictionary, given: Tensor, error: Exception) -> UserError:
    return UserError(
        f"{dictionary.name} fails on activations {tuple(given.shape)} in {str(given.dtype).removeprefix('torch.')} on "
        f"{given.device.type}: {type(error).__name__}: {first_line(error)}"
    )


def is_own(source: Any) -> bool:
    """Whether `source` is a module or function that can stand for activations."""
    return isinstance(source, nn.Module) or (callable(source) and not isinstance(source, type))
