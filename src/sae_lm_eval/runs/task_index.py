"""Which tasks lm_eval knows, by the few lines of its files that name them: its own index parses 14,000 files whole."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sae_lm_eval._autoload import tasks_folder
from sae_lm_eval.errors import UserError, did_you_mean
from sae_lm_eval.files.reading import at_home, without_waiting
from sae_lm_eval.runs.kept_reads import KeptReads
from sae_lm_eval.runs.lm_eval_source import lm_eval_folder

KEYS = ("task", "group", "tag", "class", "include")
# In a block mapping no line of a value begins at the margin, but for the items of a list.
NAMING = re.compile(rf"""^(["']?)({"|".join(KEYS)})\1[ \t]*:(.*(?:\n(?:[ \t#-].*)?)*)""", re.MULTILINE)
SIMPLE = re.compile(r"""[A-Za-z_][\w./-]*|"[\w./-]*"|'[\w./-]*'""")
SKIPPED = frozenset({"__pycache__", ".ipynb_checkpoints"})  # as lm_eval does
RESERVED = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})  # words that YAML reads otherwise
FLOW = re.compile(r"\s*[{\[%&!]|.*^---.*^---", re.MULTILINE | re.DOTALL)

_Quickest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Quickest):
    """Functions stay the text that names them."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def naming_keys(
    path: str, own_keys: Callable[[str], dict[str, Any]] | None = None, seen: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Of lm_eval's `load_yaml`, with what it includes, the keys that say which tasks a file defines.

    `own_keys` tells those of a file without what it includes. Raises `ValueError` or `OSError` for a file that is none
    of a task's.
    """
    if path in seen:
        raise ValueError(f"Include cycle at {path}")
    own_keys = own_keys or _own_keys
    own = dict(own_keys(path))
    included = own.pop("include", None)
    merged: dict[str, Any] = {}
    for one in included if isinstance(included, list) else [included] if included else []:
        if not isinstance(one, str):
            raise ValueError(f"{path} includes {one!r}, which is no path")
        there = os.path.normpath(os.path.join(os.path.dirname(path), one))
        merged |= naming_keys(there, own_keys, (*seen, path))
    return merged | own


def _own_keys(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8", opener=without_waiting) as file:
        text = file.read()
    try:
        if FLOW.match(text):
            found = yaml.load(text, Loader=_Loader)
            if not isinstance(found, dict):
                raise ValueError(f"{path} is no mapping")
            return {key: found[key] for key in KEYS if key in found}
        return {key: _value(block) for _, key, block in NAMING.findall(text)}
    except (yaml.YAMLError, RecursionError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


@cache
def _default_keys() -> dict[str, dict[str, Any]]:
    """By path, the naming keys of each file of lm_eval's and of this package that has any."""
    rules = Path(__file__).read_text(encoding="utf-8")  # what reads the files is part of what is kept
    own_keys = KeptReads(_own_keys, "\n".join((*_default_folders(), version("lm_eval"), rules)))
    found: dict[str, dict[str, Any]] = {}
    for path in (path for folder in _default_folders() for path in _files(folder)):
        with suppress(ValueError, OSError):  # lm_eval passes over it as well
            found[path] = naming_keys(path, own_keys)
    own_keys.save()
    return found


def _value(block: str) -> Any:
    word = block.strip()
    if SIMPLE.fullmatch(word) and word.lower() not in RESERVED:
        return word.strip("\"'")
    # The anchors that it may refer to stand elsewhere; no name of a task is one.
    return yaml.load(f"value:{block}", Loader=_Loader)["value"]


@contextmanager
def quick_index() -> Iterator[None]:
    """Inside the scope a `TaskManager` of lm_eval's reads its own and this package's files by `naming_keys`.

    The tasks themselves are read whole when they are made. Other folders are read as lm_eval reads them.
    """
    from lm_eval.tasks import _index

    whole: Callable[..., dict[str, Any]] = _index.load_yaml
    known = _default_keys()

    def load(path: Path, **how: Any) -> dict[str, Any]:
        return dict(known[str(path)]) if str(path) in known else whole(path, **how)

    _index.load_yaml = load
    try:
        yield
    finally:
        _index.load_yaml = whole


def task_names(include_path: str | Path | Sequence[str | Path] | None = None) -> frozenset[str]:
    """The names of all tasks, groups and tags that lm_eval has, this package adds, or the folders given hold."""
    given = [include_path] if isinstance(include_path, str | Path) else list(include_path or [])
    names = {name for found in _default_keys().values() for name in _names(found)}
    for _, found in _included(given):
        names.update(_names(found))
    return frozenset(names)


def members(
    asked: Iterable[str], include_path: str | Path | Sequence[str | Path] | None = None
) -> tuple[dict[str, list[str]], list[str]] | None:
    """The members of each group that `asked` names or that is in one of these, and all their tasks.

    None where only loading them tells: of files, patterns, and tasks that a group defines itself.
    """
    given = [include_path] if isinstance(include_path, str | Path) else list(include_path or [])
    named: dict[str, dict[str, Any]] = {}
    tagged: dict[str, list[str]] = {}
    for _, found in (*_default_keys().items(), *_included(given)):
        for name in list(_names(found))[:1]:
            named[name] = found
        for tag in list(_names(found))[1:]:
            tagged.setdefault(tag, []).append(found["task"])
    groups: dict[str, list[str]] = {}
    tasks: list[str] = []
    left = list(asked)
    while left:
        name = left.pop(0)
        if name in groups or name in tasks:
            continue
        if name in tagged and name not in named:
            left = [*tagged[name], *left]
            continue
        if name not in named:
            return None
        found = named[name]
        if "class" in found or "group" not in found:
            tasks.append(name)
            continue
        listed: Any = found.get("task")
        own: list[Any] = [one.get("group", one.get("task")) if isinstance(one, dict) else one for one in listed or ()]
        if not all(isinstance(one, str) and (one in named or one in tagged) for one in own):
            return None
        groups[name] = [task for one in own for task in (tagged[one] if one not in named else [one])]
        left = [*groups[name], *left]
    return groups, tasks


def _included(folders: Iterable[str | Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in (path for folder in folders for path in _files(os.path.expanduser(folder))):
        with suppress(ValueError, OSError):  # lm_eval passes over it as well
            yield path, naming_keys(path)


def _names(found: dict[str, Any]) -> Iterator[str]:
    if "class" not in found and "group" in found:
        yield from (name for name in [found["group"]] if isinstance(name, str))
    elif isinstance(found.get("task"), str):
        tags = found.get("tag") or []
        listed = tags if isinstance(tags, list) else [tags]
        yield from (found["task"], *(tag for tag in listed if isinstance(tag, str)))


def check_tasks(asked: Iterable[Any], include_path: str | Path | Sequence[str | Path] | None = None) -> None:
    """Raise `UserError` where one of `asked`, as `--tasks` takes them, is no task, with the nearest names, or where a
    task is asked by itself and in a group, or in two.
    """
    asked = list(asked)
    known: frozenset[str] | None = None
    for name in asked:
        if not isinstance(name, str) or _is_file(name):
            continue
        known = task_names(include_path) if known is None else known
        if not (name in known or any(fnmatchcase(one, name) for one in known)):
            raise UserError(f"There is no task '{name}'.{did_you_mean(name, known)} 'lm_eval ls tasks' lists them.")
    _check_repeated([name for name in asked if isinstance(name, str)], include_path)


def _check_repeated(asked: Sequence[str], include_path: str | Path | Sequence[str | Path] | None) -> None:
    """Raise `UserError` for what lm_eval calls a duplicate task; a tag stands for its tasks, each by itself."""
    by: dict[str, str] = {}
    for name in dict.fromkeys(asked if len(asked) > 1 else ()):
        groups, tasks = members([name], include_path) or ({}, [])
        for task in sorted(tasks):
            source = name if name in groups else task
            if (other := by.setdefault(task, source)) != source:
                if task in (other, source):
                    group = source if task == other else other
                    raise UserError(f"tasks: '{task}' is in the group '{group}' as well: name one of them.")
                raise UserError(f"tasks: '{task}' is in '{other}' and in '{source}': name one of these groups.")


def _is_file(name: str) -> bool:
    path = at_home(name)
    if name.endswith((".yaml", ".yml")) and not re.search(r"[*?\[]", name) and not path.is_file():
        raise UserError(f"There is no file '{name}' with a task.")
    return name.endswith((".yaml", ".yml")) or path.is_dir()


@cache
def _default_folders() -> tuple[str, str]:
    return str(lm_eval_folder() / "tasks"), tasks_folder()


def _files(folder: str) -> Iterator[str]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED]
        yield from (os.path.join(where, name) for name in names if name.endswith(".yaml"))
