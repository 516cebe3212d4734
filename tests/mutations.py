"""Values as somebody else's file might hold them: those of a sound file, with some of them changed."""

from __future__ import annotations

import copy
import math
from random import Random
from typing import Any

JUNK = (
    *(None, True, False, 0, -1, 1, 3, 10**400, -(2**70), 0.5, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *("", "N/A", "nan", "5", "a,b", "text\0", "\ud800", "\u202eevil", "\x1b[31m", "../..", "x" * 5000, "[/red]"),
    *([], [None], [[]], [1, "a"], [[1, 2], [3]], {}, {"": None}, {"a": {"b": [1]}}, {"acc,none": "one"}),
)


def deep() -> Any:
    """Lists inside one another, made anew, since a later change may be inside them."""
    value: Any = 0
    for _ in range(300):
        value = [value]
    return value


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value inside `value`."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in parts for place in places(part, (*at, key)))]


def mutated(sound: Any, rng: Random) -> Any:
    """`sound` with one to three of its values replaced, left out, or put there under another name."""
    value = copy.deepcopy(sound)
    for _ in range(rng.randint(1, 3)):
        every = [place for place in places(value) if len(place) < 30]
        # Those near the top are fewer, and matter as much.
        depth = rng.choice(sorted({len(place) for place in every}))
        place = rng.choice([place for place in every if len(place) == depth])
        new = deep() if rng.random() < 0.03 else copy.deepcopy(rng.choice(JUNK))
        if not place:
            if rng.random() < 0.1:
                return new
            continue
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        what = rng.choice(("replace", "replace", "delete", "rename"))
        if what == "replace":
            parent[place[-1]] = new
        elif what == "delete" or isinstance(parent, list):
            del parent[place[-1]]
        else:
            parent[rng.choice(["", "x", "\ud800", "acc,none"])] = parent.pop(place[-1])
    return value
