"""Classes of positions: what divides the tokens that a model reads, and the label that a token has by all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sae_lm_eval.attribution.segments import DIFFERENCE, LAST, OTHER, SEGMENTS, PromptDocument, segments
from sae_lm_eval.attribution.token_kinds import KINDS, Words, first_letters, token_kinds
from sae_lm_eval.comparison.restored import MISSED
from sae_lm_eval.errors import UserError, one_of

MOST_LABELS = 2**13  # so that a label and an id of the largest vocabularies fit into 32 bits
DISTANCES = (1, 4, 16, 64)  # tokens before the answer
REST = "the rest"
NORMS, SITES = "norm", "site"  # what divides the places, and no token tells
DIRECTIONS, COMPONENTS = "direction", "component"  # what divides the error wherever it is
LEADING = (1, 8, 64)  # leading components that are taken together
NEAREST = (8, 32)  # latents below the threshold that are taken together
PARTS = {DIRECTIONS: 2, COMPONENTS: len(LEADING), MISSED: len(NEAREST)}  # how many classes each has
NESTED = (COMPONENTS, MISSED)  # whose classes lie inside one another
DIVISIONS = ("segment", "kind", "first", "distance", "regex", "field", NORMS, SITES, *PARTS)
PATCHES = 3  # of a class: its error put back, left in alone, and another of the same norm alone
VARIANTS_AT_ONCE = 12  # in one forked pass
NORMS_OF = 256  # requests whose errors the quantiles are taken from
DEFAULT = ("segment", "kind")


@dataclass(frozen=True)
class Reading:
    """What a model reads to answer one request: `text` is context and continuation.

    `spans` of the tokens in the text are empty where a token has none; `context` is how many tokens are the context's.
    """

    document: PromptDocument
    text: str
    letters: int  # of the context
    spans: Int[np.ndarray, "tokens 2"]
    special: Bool[np.ndarray, " tokens"]
    context: int
    aligned: bool = True

    def touched(self, marked: Sequence[tuple[int, int]]) -> Int[np.ndarray, " tokens"]:
        """1 for tokens that have a letter in one of the spans of letters, else 0."""
        inside = np.zeros(len(self.text) + 1, dtype=int)
        for start, end in marked:
            inside[start:end] = 1
        before = np.concatenate([[0], np.cumsum(inside)])
        return (before[self.spans[:, 1]] > before[self.spans[:, 0]]).astype(int)


@dataclass(frozen=True)
class Division:
    """Divides tokens into `classes`: `index` gives each token of a reading the number of its class."""

    name: str
    classes: tuple[str, ...]
    index: Callable[[Reading], Int[np.ndarray, " tokens"]] = field(compare=False)


def division(text: str, words: Words) -> Division:
    """What `--by` names: segment, kind, first:N, distance, regex:NAME=PATTERN or field:NAME. Raises `UserError`."""
    name, _, rest = text.partition(":")
    one_of(name, DIVISIONS, "--by")
    if name == "segment":
        return Division(name, SEGMENTS, _segment_index)
    if name == "kind":
        return Division(name, KINDS, lambda r: token_kinds(r.text, r.spans, r.special, words))
    if name == "first":
        count = whole_of(rest or "4", f"--by {text}")
        return Division(name, (f"first {count}", "later"), lambda r: (np.arange(len(r.spans)) >= count).astype(int))
    if name == "distance":
        ends = [0, *DISTANCES]
        between = [
            f"{a} to {b - 1} before" if b - a > 1 else f"{a} before" for a, b in zip(ends, DISTANCES, strict=False)
        ]
        return Division(name, ("in the answer", *between, f"{DISTANCES[-1]} or more before"), _distance_index)
    if name == "regex":
        return _by_pattern(text, rest)
    if name == "field":
        if not rest:
            raise UserError(f"--by {text} names no field: give one of the documents', as in --by field:evidence.")
        return Division(rest, (rest, REST), lambda r: 1 - r.touched(_field_spans(r, rest)))
    raise UserError(f"--by {text} divides no tokens.")


def whole_of(text: str, where: str) -> int:
    """A whole number of at least 1. Raises `UserError`."""
    if not text.isdecimal() or not int(text):
        raise UserError(f"{where}: '{text}' is no whole number of at least 1, as in --by first:4.")
    return int(text)


def _by_pattern(text: str, rest: str) -> Division:
    name, equals, pattern = rest.partition("=")
    if not name or not equals or not pattern:
        raise UserError(f"--by {text} is no pattern with a name: write it as in --by 'regex:number=[0-9]+'.")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--by {text} is no regular expression: {error}.") from error
    return Division(name, (name, REST), lambda r: 1 - r.touched([match.span() for match in compiled.finditer(r.text)]))


def _field_spans(reading: Reading, name: str) -> list[tuple[int, int]]:
    """Spans of letters that a document's field names: texts to look for, or pairs of places in its own text."""
    document = reading.document
    value = document.fields.get(name)
    listed: Any = value if isinstance(value, list | tuple) else [] if value is None else [value]
    text = document.own
    own = -1 if text is None else reading.text.rfind(text.rstrip(), 0, reading.letters)
    spans = []
    for entry in [listed] if _is_span(listed) else listed:
        if _is_span(entry):
            spans += [(own + entry[0], own + entry[1])] if own >= 0 else []
        elif isinstance(entry, str) and entry:
            spans += [match.span() for match in re.compile(re.escape(entry)).finditer(reading.text, max(own, 0))]
        else:
            raise UserError(
                f"--by field:{name}: {entry!r} of document {document.doc_id} of {document.task} is neither a "
                f"text nor a pair of places in it, such as [3, 9]."
            )
    return spans


def _is_span(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(place) is int and place >= 0 for place in value)
    )


def _segment_index(reading: Reading) -> Int[np.ndarray, " tokens"]:
    other = SEGMENTS.index(OTHER)
    if not reading.aligned:
        return np.full(len(reading.spans), other)
    context, continuation = reading.text[: reading.letters], reading.text[reading.letters :]
    of_letter = np.full(len(reading.text) + 1, other)
    for start, end, name in segments(context, continuation, reading.document):
        of_letter[start:end] = SEGMENTS.index(name)
    out = np.where(reading.special, other, of_letter[first_letters(reading.text, reading.spans)])
    differs = np.flatnonzero(out == SEGMENTS.index(DIFFERENCE))
    if len(differs) and differs[0]:
        out[differs[0] - 1] = SEGMENTS.index(LAST)
    return out


def _distance_index(reading: Reading) -> Int[np.ndarray, " tokens"]:
    before = reading.context - 1 - np.arange(len(reading.spans))
    return np.where(before < 0, 0, 1 + np.searchsorted(DISTANCES, before, side="right"))


class Labels:
    """The label of a token: the numbers of its classes by all divisions, as digits of one number."""

    def __init__(self, divisions: Sequence[Division]) -> None:
        self.divisions = tuple(divisions)
        names = [division.name for division in divisions]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"--by names '{twice}' twice.")
        self.sizes = [len(division.classes) for division in divisions]
        if np.prod(self.sizes, dtype=float) > MOST_LABELS:
            raise UserError(f"--by divides tokens into more than {MOST_LABELS:,} kinds at once: leave some out.")
        self.seen: set[int] = set()  # where something is spliced in

    def index(self, reading: Reading) -> Int[np.ndarray, " tokens"]:
        """Of each token; with no division they are alike."""
        numbers = [division.index(reading) for division in self.divisions]
        return np.ravel_multi_index(numbers, self.sizes) if numbers else np.zeros(len(reading.spans), dtype=int)

    def of_class(self, division: int, number: int) -> frozenset[int]:
        """The labels that were seen of a class."""
        if not self.seen:
            return frozenset()
        seen = np.array(sorted(self.seen))
        return frozenset(seen[np.unravel_index(seen, self.sizes)[division] == number].tolist())

    def counts(self, labels: Int[np.ndarray, " tokens"], division: int) -> Int[np.ndarray, " classes"]:
        """How many tokens each class of a division has."""
        numbers = np.unravel_index(labels, self.sizes)[division]
        return np.bincount(numbers, minlength=self.sizes[division])
