"""What models, tokenizers and dictionaries that are given as objects are called in records. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN = (str, bool, int, float, Path, type(None))


def is_object(value: Any) -> bool:
    """Whether a value is neither text nor number nor a list or mapping, of which records hold what they say."""
    return not isinstance(value, (*PLAIN, list, tuple, Mapping))


def object_name(value: Any) -> str:
    """That of a dictionary, what a model was loaded from, a function's, or that of the object's class."""
    given = getattr(value, "name", None) or getattr(value, "name_or_path", None)
    if isinstance(given, str) and given:
        return given
    named = getattr(value, "__qualname__", type(value).__qualname__)
    return f"<{str(named).rpartition('.')[2].strip('<>')}>"


def object_texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with names for objects; several dictionaries are joined as in a spec."""
    out = {}
    for name, value in values.items():
        if isinstance(value, tuple):
            value = "+".join(object_name(source) if is_object(source) else str(source) for source in value)
        out[name] = object_name(value) if is_object(value) else value
    return out
