"""A text whose documents are scored, and what is asked about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

POSITIONS = ("all", "non_special")


@dataclass(frozen=True)
class TextSource:
    """A text: what it is, documents of it that are not scored, which positions count, and the splits of both.

    `positions` is "all", or "non_special" without those whose input is a bos, eos or pad token, or lies where the
    dictionaries are not spliced in because they were not trained there.
    """

    name: str
    held_out: tuple[str, ...] = ()
    positions: str = "all"
    split: str | None = None
    held_out_split: str | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class TextDocument:
    """`number` is its place in the text."""

    number: int
    text: str
    category: str | None


class TextRequest(NamedTuple):
    """One document of a task, by the number that the task gives it."""

    task: str
    doc_id: Any
    text: str
    category: str | None
    source: TextSource
