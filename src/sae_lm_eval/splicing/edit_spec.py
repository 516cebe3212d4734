"""`edit=`: which change of a model's own weights and modules is asked for. No torch: mistakes are told before it.

An edit is written `KIND?name=value&name=value`; `python:FILE.py:FUNCTION?...` names a function of the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sae_lm_eval.dictionaries.spec import PYTHON, SaeSpec, arguments_of
from sae_lm_eval.errors import UserError, did_you_mean, one_of
from sae_lm_eval.splicing.layer_choice import named_layers
from sae_lm_eval.splicing.splice_arguments import SpliceArguments

WEIGHTS = ("mlp", "attention", "all")
OWN = "own"  # the kind of a function that was handed over from Python
REQUIRED = None


def _whole(least: int, most: int | None = None) -> Callable[[str, Any], int]:
    return partial(_number, int, least, most)


def _real(least: float, most: float | None = None) -> Callable[[str, Any], float]:
    return partial(_number, float, least, most)


def _number(kind: Callable[[Any], Any], least: float, most: float | None, where: str, value: Any) -> Any:
    try:
        number = kind(str(value))
    except ValueError:
        number = None
    if number is None or not least <= number <= (float("inf") if most is None else most) or number == float("inf"):
        what = "a whole number" if kind is int else "a number"
        span = f"of at least {least:g}" if most is None else f"from {least:g} to {most:g}"
        raise UserError(f"{where}={value} must be {what} {span}.")
    return number


def _layers(where: str, value: Any) -> tuple[int, ...]:
    return tuple(named_layers(value, where))


def _weights(where: str, value: Any) -> str:
    return one_of(value, WEIGHTS, where)


# By kind its arguments, each with its default and how it is read.
KINDS: Mapping[str, Mapping[str, tuple[Any, Callable[[str, Any], Any]]]] = {
    "quantize": {"bits": (REQUIRED, _whole(2, 8)), "group": (0, _whole(0)), "weights": ("all", _weights)},
    "nf4": {"block": (64, _whole(1)), "weights": ("all", _weights)},
    "prune": {"share": (REQUIRED, _real(0, 1)), "weights": ("mlp", _weights)},
    "lowrank": {"rank": (0, _whole(1)), "share": (0, _real(0, 1)), "weights": ("mlp", _weights)},
    "skip": {"layers": (REQUIRED, _layers)},
    "noise": {"std": (REQUIRED, _real(0)), "seed": (0, _whole(0)), "weights": ("all", _weights)},
}


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a model: `kind`, its `values`, and what it is called.

    `source` is the function of the user's own where there is one: a spec of the `python:` loader, or the function.
    """

    kind: str
    name: str
    values: Mapping[str, Any]
    source: Any = None

    def __str__(self) -> str:
        return self.name


def edit_of(given: Any) -> Edit | None:
    """What `edit=` says, None where it says nothing. Raises `UserError` where it is no edit."""
    if given is None or isinstance(given, Edit):
        return given
    if callable(given):
        name = getattr(given, "__qualname__", type(given).__qualname__)
        return Edit(OWN, f"<{name.rpartition('.')[2].strip('<>')}>", {}, given)
    text = str(given)
    if text.startswith(f"{PYTHON}:"):
        spec = SaeSpec.parse(text)
        return Edit(PYTHON, str(spec), {}, spec)
    kind, pairs = arguments_of(text)
    if kind == PYTHON:
        raise UserError(f"edit={text} names no function: edit=python:FILE.py:FUNCTION does.")
    one_of(kind, (*KINDS, PYTHON), "edit")
    parameters, values = KINDS[kind], {}
    for name, value in pairs:
        if name not in parameters:
            raise UserError(
                f"edit={kind} has no argument '{name}'.{did_you_mean(name, parameters)} "
                f"It takes {', '.join(parameters)}."
            )
        if name in values:
            raise UserError(f"edit={text} says {name} twice.")
        values[name] = parameters[name][1](f"edit={kind}: {name}", value)
    if missing := [name for name, (default, _) in parameters.items() if default is REQUIRED and name not in values]:
        raise UserError(f"edit={kind} needs {missing[0]}, as in edit={kind}?{missing[0]}={EXAMPLES[kind]}.")
    if kind == "lowrank" and len({"rank", "share"} & values.keys()) != 1:
        raise UserError("edit=lowrank needs rank or share, one of the two, as in edit=lowrank?rank=64.")
    left_out = ("rank", "share") if kind == "lowrank" else ()  # of which one is given
    defaults = {
        name: default for name, (default, _) in parameters.items() if default is not REQUIRED and name not in left_out
    }
    return Edit(kind, text, {**defaults, **values})


EXAMPLES = {"quantize": "4", "prune": "0.3", "lowrank": "64", "skip": "3+4", "noise": "0.1"}


def refuse_edit(arguments: SpliceArguments) -> None:
    """Raise `UserError` where a variant has an edit, for what can only be said of dictionaries."""
    if (edit := asked_edit(arguments)) is not None:
        raise UserError(
            f"inspect says where dictionaries go, and edit={edit} has none; its results say what it changed."
        )


def check_layers(edit: Edit, count: int, model: str) -> None:
    """Raise `UserError` where a layer that is to be skipped is none of the `count` layers of `model`."""
    for layer in edit.values.get("layers", ()):
        if layer >= count:
            raise UserError(f"edit={edit} skips layer {layer}: layers of {model} run from 0 to {count - 1}.")


def asked_edit(arguments: SpliceArguments) -> Edit | None:
    """The edit of a variant. Raises `UserError` where what is said besides is of dictionaries."""
    edit = edit_of(arguments.edit)
    if edit is None:
        return None
    if arguments.sae is not None and not (isinstance(arguments.sae, list | tuple) and not arguments.sae):
        raise UserError(f"edit={edit} takes the place of sae=: give one of the two.")
    usual = SpliceArguments()
    for name in SpliceArguments.names():
        if name in ("sae", "edit") or getattr(arguments, name) == getattr(usual, name):
            continue
        if name == "peft":
            raise UserError(f"peft= goes beside dictionaries, and not beside edit={edit}: leave one of them out.")
        raise UserError(f"{name}= is of dictionaries, and edit={edit} has none: leave it out.")
    return edit
