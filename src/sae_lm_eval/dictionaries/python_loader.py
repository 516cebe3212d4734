"""`python:FILE.py:FUNCTION` and `python:package.module:FUNCTION`: what a function of the user's own makes.

The text `python:` is what asks for somebody's Python to be run; no name of a release or a repository leads here.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError, did_you_mean, first_line
from sae_lm_eval.files.reading import at_home

FORM = "python:path/to/file.py:function or python:package.module:function, with arguments as in ?rank=32&seed=1"


def made_by(spec: SaeSpec, *given: Any) -> tuple[Any, str | None]:
    """What the function that `spec` names gives when it is called with its arguments, and a checksum of its file.

    `given` stands before the arguments. An object that is neither function nor class is taken as it is.

    Raises `UserError` where there is no such file, module or name, or running it fails.
    """
    place, name = python_source_parts(spec)
    with _importable(place):
        module = _module(spec, place)
        if not hasattr(module, name):
            names = [key for key in vars(module) if not key.startswith("_")]
            raise UserError(f"'{place}' has no '{name}'.{did_you_mean(name, names)}")
        value = getattr(module, name)
        if isinstance(value, types.FunctionType | type):
            value = _called(spec, value, given)
        elif spec.arguments:
            raise UserError(
                f"'{spec}' names an object that is there already: only functions and classes take arguments."
            )
    return value, checksum_of(Path(module.__file__ or ""))


def check_python_source(spec: SaeSpec) -> None:
    """Raise `UserError` where there is no such file, or it is no Python; nothing is run."""
    place, _ = python_source_parts(spec)
    if not _is_file(place):
        with _importable(place):
            if importlib.util.find_spec(place.partition(".")[0]) is None:
                raise UserError(f"There is no module '{place}', and a file to run ends in .py.")
        return
    path = at_home(place)
    if not path.is_file():
        raise UserError(f"There is no file '{place}' to run.")
    try:
        ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"'{place}' cannot be run: {type(error).__name__}: {first_line(error)}") from error


def python_source_parts(spec: SaeSpec) -> tuple[str, str]:
    """The file or module, and the name in it."""
    place, colon, name = spec.source.rpartition(":")
    if not colon or not place or not name.isidentifier() or spec.id is not None or spec.revision is not None:
        raise UserError(f"'{spec}' names no function: write {FORM}.")
    return place, name


def checksum_of(path: Path) -> str | None:
    """32 hexadecimal digits over a file, None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32] if path.is_file() else None


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


@contextlib.contextmanager
def _importable(place: str) -> Iterator[None]:
    """Inside the scope, what lies beside the file, or for a module in the working folder, can be imported."""
    folder = str(at_home(place).resolve().parent if _is_file(place) else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _module(spec: SaeSpec, place: str) -> types.ModuleType:
    check_python_source(spec)
    try:
        if not _is_file(place):
            return importlib.import_module(place)
        path = at_home(place).resolve()
        # Under a name of its content, so that a file that has changed is another module, and one that has not the same.
        name = f"_python_{path.stem}_{checksum_of(path)}"
        if name in sys.modules:
            return sys.modules[name]
        module_spec = importlib.util.spec_from_file_location(name, path)
        assert module_spec is not None, "check says that it is a file"
        assert module_spec.loader is not None, "check says that it is a file"
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module
        try:
            module_spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except (Exception, SystemExit) as error:  # of somebody's own code, whatever it raises
        raise UserError(f"'{place}' cannot be run: {type(error).__name__}: {first_line(error)}") from error


def _called(spec: SaeSpec, function: Any, given: tuple[Any, ...]) -> Any:
    arguments = {name: _value(text) for name, text in spec.arguments}
    try:
        inspect.signature(function).bind(*given, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"'{spec}' cannot be called so: {first_line(error)}. It is called once, with "
            f"{'the model and ' if given else ''}what stands behind '?'."
        ) from error
    try:
        return function(*given, **arguments)
    except (Exception, SystemExit) as error:  # of somebody's own code, whatever it raises
        raise UserError(f"'{spec}' fails: {type(error).__name__}: {first_line(error)}") from error


def _value(text: str) -> Any:
    """A number, true, false or none where the text is one; else the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
