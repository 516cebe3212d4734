"""Files of somebody else's -> values with types, or a `UserError` with the file, the field and what was expected.

A schema is any type that pydantic takes. What has passed it is not checked again.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sae_lm_eval.errors import UserError, did_you_mean, first_line
from sae_lm_eval.files.escaping import terminal

MOST_BYTES = 200_000_000  # of a file that is read at once, and of a line of one that is not
DEEPEST = 64  # lists and mappings inside one another
MOST_VALUES = 20_000_000  # YAML's references make billions of values of a few bytes
MOST_DIGITS = 300  # of a whole number: no float holds more, and Python writes out no more than 4,300
TOO_LARGE = 10**MOST_DIGITS
LONGEST_SHOWN = 60  # letters of a value in an error
NO_KEYS = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # `<<` and `=` of YAML
SURROGATE = re.compile("[\ud800-\udfff]")
Kind = TypeVar("Kind")


class Foreign(BaseModel):
    """A mapping of which the keys that are read have types; what else it has is kept as it is."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, protected_namespaces=())

    def as_given(self) -> dict[str, Any]:
        """The mapping as it was given, its values with their types."""
        return self.model_dump(exclude_unset=True, by_alias=True)


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """A file's text. Raises `UserError` where it cannot be read, is larger than `most` bytes, or is not UTF-8."""
    try:
        size = path.stat().st_size
        if size > most:
            raise UserError(f"'{shown(path)}' has {size / 1e6:,.0f} MB; at most {most / 1e6:,.0f} MB are read.")
        with open(path, "rb", opener=without_waiting) as opened:
            content = opened.read(most + 1)  # what is no file on a disk says nothing of its size
        if len(content) > most:
            raise UserError(f"'{shown(path)}' has more than {most / 1e6:,.0f} MB, which are read at most.")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_start(path: Path, letters: int) -> str:
    """The first letters of a text file, all of them for -1. Raises `UserError` as `read_text` does."""
    try:
        with open(path, encoding="utf-8-sig", opener=without_waiting) as opened:
            return opened.read(letters)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def without_waiting(path: str, flags: int) -> int:
    """An opener of files to read, for `open`: a pipe into which nobody writes is empty, and holds nothing up."""
    if not hasattr(os, "O_NONBLOCK"):  # as on Windows
        return os.open(path, flags)
    opened = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(opened, True)
    return opened


def at_home(path: str | Path) -> Path:
    """The path, `~` standing for the user's folder; as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises there


def is_file(path: Path) -> bool:
    """Whether there is a file, False for what cannot be a path."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder, False for what cannot be a path."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_json(path: Path, kind: type[Kind], what: str) -> Kind:
    """The JSON of a file as a value of `kind`. Raises `UserError` where it cannot be read or is not `what`."""
    return checked(kind, json_value(read_text(path), f"'{shown(path)}'"), f"'{shown(path)}'", what)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time. Raises `UserError` as `read_text` does."""
    try:
        with open(path, encoding="utf-8-sig", opener=without_waiting) as lines:
            while line := lines.readline(MOST_BYTES):
                if len(line) == MOST_BYTES:
                    raise UserError(f"'{shown(path)}' has a line of more than {MOST_BYTES / 1e6:,.0f} MB.")
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def json_value(text: str, where: str) -> Any:
    """What JSON holds, lone surrogates as their escapes.

    Raises `UserError` for what is none, nested too deep, has a whole number of more than 300 digits, or has a key twice
    with different values, of which one would be lost.
    """
    try:
        value = _json(text)
        if "\\ud" in text or "\\uD" in text:
            escaped = SURROGATE.sub(lambda match: rf"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))
            value = json.loads(escaped)
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:
        raise UserError(f"{where} cannot be read as JSON: {first_line(error)}") from error
    _check_extent(value, where)
    return value


def yaml_value(text: str, where: str) -> Any:
    """What YAML holds. Raises `UserError` as `json_value` does."""
    try:
        value = yaml.load(text, Loader=_Yaml)
    except RecursionError:
        raise _too_deep(where) from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    _check_extent(value, where)
    return value


def checked(kind: type[Kind], value: Any, where: str, what: str) -> Kind:
    """`value` as a value of `kind`. Raises `UserError` that names the first field of `where` that is none."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = shown(".".join(map(str, first["loc"])) or "the whole", 2 * LONGEST_SHOWN)
        if first["type"] == "missing":
            raise UserError(f"{where} is not {what}: '{field}' is missing.") from None
        if first["type"] == "extra_forbidden":
            keys = list(getattr(kind, "model_fields", ()))
            raise UserError(f"{where} is not {what}: it has no key '{field}'.{did_you_mean(field, keys)}") from None
        if first["type"] in ("model_type", "dict_type"):
            expected = "it must be a mapping"
        elif first["type"] == "value_error":
            expected = str(first.get("ctx", {}).get("error"))
        else:
            expected = first["msg"].replace("Input should be", "it must be")
        raise UserError(f"{where} is not {what}: '{field}' is {shown(first['input'])}; {expected}.") from None


def shown(value: Any, longest: int = LONGEST_SHOWN) -> str:
    """A value in an error, shortened."""
    try:
        text = terminal(value if isinstance(value, str | Path) else repr(value))
    except ValueError:  # of Python's own, which does not write out whole numbers of so many digits
        text = "what has more digits than are written out"
    return text if len(text) <= longest else f"{text[: longest // 2]}...{text[-longest // 2 :]}"


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check_extent(value: Any, where: str) -> None:
    level: list[Any] = [value]
    count = 0
    for _ in range(DEEPEST):
        if any(type(part) is int and not -TOO_LARGE < part < TOO_LARGE for part in level):
            raise UserError(f"{where} cannot be read: {_too_many_digits()}")
        level = [part for container in level if isinstance(container, dict | list) for part in _parts(container)]
        count += len(level)
        if not level:
            return
        if count > MOST_VALUES:
            raise UserError(f"{where} holds more than {MOST_VALUES:,} values.")
    raise _too_deep(where)


class _Yaml(yaml.SafeLoader):
    """YAML without a key that stands twice in one mapping, of which the last would count.

    Keys are compared as the values that they are read as: `yes` and `true` are one. `<<` may stand several times.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        before: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag in NO_KEYS:
                continue
            written = (value.tag, value.value) if isinstance(value, yaml.ScalarNode) else value
            if before.setdefault(self.construct_object(key, deep=True), written) != written:
                place = node.start_mark.line + 1
                raise yaml.YAMLError(f"the key '{shown(key.value)}' stands twice in the mapping of line {place}")
        return node

    def construct_yaml_int(self, node: Any) -> int:
        """A whole number, also in other bases and with the base of sixty."""
        if len(node.value) > 4 * MOST_DIGITS:  # int() itself refuses 4,300
            raise _too_many_digits()
        if abs(number := super().construct_yaml_int(node)) >= TOO_LARGE:
            raise _too_many_digits()
        return number


_Yaml.add_constructor("tag:yaml.org,2002:int", _Yaml.construct_yaml_int)


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except ValueError:  # perhaps of int(), which refuses 4,300 digits; a function of ours for each number is slow
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)


def _whole_number(digits: str) -> int:
    if len(digits.removeprefix("-")) > MOST_DIGITS:  # JSON has no zeros before a number
        raise _too_many_digits()
    return int(digits)


def _too_many_digits() -> ValueError:
    return ValueError(f"it has a whole number of more than {MOST_DIGITS} digits")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping. Keys that stand twice with one value are one: libraries write both 1 and "1" as "1"."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        for key, value in pairs:
            if repr(value) != repr(mapping[key]):
                raise ValueError(f"the key '{shown(key)}' stands twice in one object")
    return mapping


def _parts(value: dict[Any, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _too_deep(where: str) -> UserError:
    return UserError(f"{where} is nested more than {DEEPEST} deep.")


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    if isinstance(error, UnicodeDecodeError):
        why = f"it is no UTF-8 at byte {error.start:,}"
    return UserError(f"'{shown(path, 200)}' cannot be read: {why}")
