"""One category of the world's text: how independent choices become an instance, and back.

An instance is a form (a sentence or a few) with slots. `fill` computes every slot from the choices; `recover`
is its inverse. The slot `answer` is what the questions ask: what precedes it tells which choice is right.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from .options import Arrangement, RandomChoice, Uniform

Values = dict[str, Any]
Slots = dict[str, Any]
# What is harder to learn is written more often; the others have weight 1.
WEIGHTS = {"comparison": 3, "arithmetic": 2, "order": 3, "copying": 2}
HELD_OUT_SHARE = 8  # one combination in so many is asked and never written in a document


@dataclass(frozen=True)
class Category:
    """One kind of instance. `held_out` replaces the options of that name when questions are made."""

    name: str
    group: str
    repeats: int
    forms: tuple[str, ...]
    options: Mapping[str, RandomChoice]
    held_out: Mapping[str, RandomChoice]
    fill: Callable[[Values], Slots]
    recover: Callable[[Slots], Values]
    lures: Callable[[Values, Slots, Random], list[str]]
    form_in: Callable[[Values], int] = lambda values: values["form"]
    form_keys: tuple[str, ...] = ("form",)  # the options that form_in looks at

    @cached_property
    def patterns(self) -> tuple[re.Pattern, ...]:
        return tuple(_pattern(form) for form in self.forms)

    def write(self, values: Values) -> str:
        return self.forms[self.form_in(values)].format(**self.fill(values))

    def read(self, text: str) -> Values | None:
        """The choices that `write` turns into `text`; None if no choices do."""
        for form, pattern in enumerate(self.patterns):
            match = pattern.fullmatch(text)
            if match is None:
                continue
            try:
                values = self.recover({**match.groupdict(), "form": form})
                if self.write(values) == text:
                    return values
            except (KeyError, ValueError, IndexError):
                continue
        return None

    @property
    def weight(self) -> int:
        """How often the category is written, relative to the others."""
        return WEIGHTS.get(self.name, 1)

    @property
    def sentences(self) -> int:
        return self.forms[0].count(".")


def _pattern(form: str) -> re.Pattern:
    seen: set[str] = set()

    def slot(match: re.Match) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return rf"(?P<{name}>\w+)"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", slot, re.escape(form)))


def split(combinations: Sequence[Hashable]) -> tuple[Uniform, Uniform]:
    """Options for documents and for questions: a fixed shuffle, then one in HELD_OUT_SHARE is held out."""
    rng = Random(len(combinations))
    shuffled = [c for _, _, c in sorted((rng.random(), i, c) for i, c in enumerate(combinations))]
    cut = max(1, len(shuffled) // HELD_OUT_SHARE)
    return Uniform(shuffled[cut:]), Uniform(shuffled[:cut])


def others(rng: Random, pool: Sequence[str], count: int, *, but: Sequence[str] = ()) -> list[str]:
    return list(Arrangement([w for w in pool if w not in but], count).draw(rng))
