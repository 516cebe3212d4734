"""Which tasks lm_eval knows, by the few lines of its files that name them: its own index parses 14,000 files whole."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sae_lm_eval._autoload import tasks_folder
from sae_lm_eval.errors import UserError, did_you_mean
from sae_lm_eval.files.reading import at_home, is_file, is_folder, without_waiting
from sae_lm_eval.runs.kept_reads import KeptReads
from sae_lm_eval.runs.lm_eval_source import lm_eval_folder

KEYS = ("task", "group", "tag", "class", "include")
# In a block mapping no line of a value begins at the margin, but for the items of a list.
NAMING = re.compile(rf"""^(["']?)({"|".join(KEYS)})\1[ \t]*:(.*(?:\n(?:[ \t#-].*)?)*)""", re.MULTILINE)
SIMPLE = re.compile(r"""[A-Za-z_][\w./-]*|"[\w./-]*"|'[\w./-]*'""")
SKIPPED = frozenset({"__pycache__", ".ipynb_checkpoints"})  # as lm_eval does
RESERVED = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})  # words that YAML reads otherwise
FLOW = re.compile(r"\s*[{\[%&!]|.*^---.*^---", re.MULTILINE | re.DOTALL)

IncludePath = str | Path | Sequence[str | Path] | None

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
    for include in included if isinstance(included, list) else [included] if included else []:
        if not isinstance(include, str):
            raise ValueError(f"{path} includes {include!r}, which is no path")
        included_path = os.path.normpath(os.path.join(os.path.dirname(path), include))
        merged |= naming_keys(included_path, own_keys, (*seen, path))
    return merged | own


def _own_keys(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8", opener=without_waiting) as file:
        text = file.read()
    try:
        if FLOW.match(text):
            task = yaml.load(text, Loader=_Loader)
            if not isinstance(task, dict):
                raise ValueError(f"{path} is no mapping")
            return {key: task[key] for key in KEYS if key in task}
        return {key: _value(block) for _, key, block in NAMING.findall(text)}
    except (yaml.YAMLError, RecursionError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


@cache
def _default_keys() -> dict[str, dict[str, Any]]:
    """By path, the naming keys of each file of lm_eval's and of this package that has any."""
    rules = Path(__file__).read_text(encoding="utf-8")  # what reads the files is part of what is kept
    own_keys = KeptReads(_own_keys, "\n".join((*_default_folders(), version("lm_eval"), rules)))
    keys: dict[str, dict[str, Any]] = {}
    for path in (path for folder in _default_folders() for path in _files(folder)):
        with suppress(ValueError, OSError):  # lm_eval passes over it as well
            keys[path] = naming_keys(path, own_keys)
    own_keys.save()
    return keys


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
    keys = _default_keys()

    def load(path: Path, **options: Any) -> dict[str, Any]:
        return dict(keys[str(path)]) if str(path) in keys else whole(path, **options)

    _index.load_yaml = load
    try:
        yield
    finally:
        _index.load_yaml = whole


@dataclass(frozen=True)
class TaskIndex:
    """What lm_eval, this package and the folders of `include_path` define.

    Attributes:
        entries: the naming keys of each task and group, by its name
        tags: the tasks of each tag
    """

    entries: Mapping[str, Mapping[str, Any]]
    tags: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, include_path: IncludePath = None) -> TaskIndex:
        """Raises nothing for a file that defines no task: lm_eval passes over it as well."""
        folders = [include_path] if isinstance(include_path, str | Path) else list(include_path or [])
        entries: dict[str, Mapping[str, Any]] = {}
        tags: dict[str, list[str]] = {}
        for keys in (*_default_keys().values(), *_included_keys(folders)):
            name, tags_of_task = _names(keys)
            if name is not None:
                entries[name] = keys
            for tag in tags_of_task:
                tags.setdefault(tag, []).append(keys["task"])
        return cls(entries, tags)

    @cached_property
    def names(self) -> frozenset[str]:
        """Of all tasks, groups and tags."""
        return frozenset((*self.entries, *self.tags))

    def members(self, requested: Iterable[str]) -> tuple[dict[str, list[str]], list[str]] | None:
        """The members of each group that `requested` names or that is in one of these, and all their tasks.

        None where only loading them tells: of files, patterns, and tasks that a group defines itself.
        """
        groups: dict[str, list[str]] = {}
        tasks: dict[str, None] = {}
        left = deque(requested)
        while left:
            name = left.popleft()
            if name in groups or name in tasks:
                continue
            if name not in self.entries:
                if name not in self.tags:
                    return None
                left.extendleft(reversed(self.tags[name]))
                continue
            keys = self.entries[name]
            if "class" in keys or "group" not in keys:
                tasks[name] = None
                continue
            groups[name] = []
            for item in keys.get("task") or ():
                part: Any = item.get("group", item.get("task")) if isinstance(item, dict) else item
                if not isinstance(part, str) or not (part in self.entries or part in self.tags):
                    return None
                groups[name] += [part] if part in self.entries else self.tags[part]
            left.extendleft(reversed(groups[name]))
        return groups, list(tasks)


def task_names(include_path: IncludePath = None) -> frozenset[str]:
    """The names of all tasks, groups and tags that lm_eval has, this package adds, or the folders given hold."""
    return TaskIndex.read(include_path).names


def members(
    requested: Iterable[str], include_path: IncludePath = None
) -> tuple[dict[str, list[str]], list[str]] | None:
    """See `TaskIndex.members`."""
    return TaskIndex.read(include_path).members(requested)


def _included_keys(folders: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    for path in (path for folder in folders for path in _files(os.path.expanduser(folder))):
        with suppress(ValueError, OSError):  # lm_eval passes over it as well
            yield naming_keys(path)


def _names(keys: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """Of a file's naming keys, the name of its task or group, and the task's tags."""
    if "class" not in keys and "group" in keys:
        return (keys["group"] if isinstance(keys["group"], str) else None), []
    if not isinstance(keys.get("task"), str):
        return None, []
    tags = keys.get("tag") or []
    return keys["task"], [tag for tag in (tags if isinstance(tags, list) else [tags]) if isinstance(tag, str)]


def check_tasks(requested: Iterable[Any], include_path: IncludePath = None) -> None:
    """Raise `UserError` where one of `requested`, as `--tasks` takes them, is no task, with the nearest names, or where
    a task is requested by itself and in a group, or in two.
    """
    requested = list(requested)
    index: TaskIndex | None = None
    for name in requested:
        if not isinstance(name, str) or _is_file(name):
            continue
        index = index or TaskIndex.read(include_path)
        if not (name in index.names or any(fnmatchcase(task, name) for task in index.names)):
            raise UserError(
                f"There is no task '{name}'.{did_you_mean(name, index.names)} 'lm_eval ls tasks' lists them."
            )
    if index is not None and len(requested) > 1:
        _check_repeated([name for name in requested if isinstance(name, str)], index)


def _check_repeated(requested: Iterable[str], index: TaskIndex) -> None:
    """Raise `UserError` for what lm_eval calls a duplicate task; a tag stands for its tasks, each by itself."""
    sources: dict[str, str] = {}
    for name in dict.fromkeys(requested):
        groups, tasks = index.members([name]) or ({}, [])
        for task in sorted(tasks):
            source = name if name in groups else task
            if (other := sources.setdefault(task, source)) != source:
                if task in (other, source):
                    group = source if task == other else other
                    raise UserError(f"tasks: '{task}' is in the group '{group}' as well: name one of them.")
                raise UserError(f"tasks: '{task}' is in '{other}' and in '{source}': name one of these groups.")


def _is_file(name: str) -> bool:
    path = at_home(name)
    if name.endswith((".yaml", ".yml")) and not re.search(r"[*?\[]", name) and not is_file(path):
        raise UserError(f"There is no file '{name}' with a task.")
    return name.endswith((".yaml", ".yml")) or is_folder(path)


@cache
def _default_folders() -> tuple[str, str]:
    return str(lm_eval_folder() / "tasks"), tasks_folder()


def _files(folder: str) -> Iterator[str]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED]
        yield from (os.path.join(where, name) for name in names if name.endswith(".yaml"))
