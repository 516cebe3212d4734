"""The parts of a prompt, found by looking for a document's own text and choices in what the model reads. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HEADER, QUESTION, OPTIONS, PREFIX = "few-shot header", "question", "options", "answer prefix"
LAST, SAME_START, DIFFERENCE, SAME_END = "last token", "answer: same start", "answer: difference", "answer: same end"
OTHER = "not aligned"
SEGMENTS = (HEADER, QUESTION, OPTIONS, PREFIX, LAST, SAME_START, DIFFERENCE, SAME_END, OTHER)
MARKED = r"(?:^|\n)[ \t]*[\(\[]?{}[\)\]\.:]"  # as in `A.` or `(A)`, at the beginning of a line
LONGEST_LABEL = 3  # letters of a choice that is no text of its own


@dataclass(frozen=True)
class PromptDocument:
    """A document as a task asks it: its own part of the prompt, what the choices of its answer are, and its fields.

    `own` is None where the prompt is another for each choice. `tail` is how many letters at the end of their own parts
    all documents of the task have in common.
    """

    task: str
    doc_id: int
    own: str | None
    choices: tuple[str, ...]
    fields: dict[str, Any] = field(default_factory=dict)
    tail: int = 0

    @property
    def written(self) -> str:
        """What is asked and what may be answered; the texts of its fields where the prompt is no one text."""
        own = [value for value in self.fields.values() if isinstance(value, str)] if self.own is None else [self.own]
        return " ".join((*own, *self.choices))


def start_of_own(context: str, own: str) -> int:
    """Where a document's own text begins in its prompt, behind the few-shot header; -1 where it is not there."""
    own = own.rstrip()
    return context.rfind(own) if own else len(context)


def segments(context: str, continuation: str, document: PromptDocument) -> list[tuple[int, int, str]]:
    """Spans (start, end, segment) of context + continuation, in order and without gaps.

    What is before the document's own text is the header; without that text in the context all of it is not aligned.
    The last token is no span: `classes.division` puts it in.
    """
    own_text, end = document.own or "", len(context)
    own = own_text.rstrip()
    start = -1 if document.own is None else start_of_own(context, own)
    if start < 0:
        spans = _joined([(end, OTHER)])
    else:
        stop = start + len(own)
        tail = max(0, min(document.tail - (len(own_text) - len(own)), len(own)))
        inner = _options(own[: len(own) - tail], document.choices)
        marks = [(start, HEADER), (stop - tail, QUESTION), (end, PREFIX)]
        if inner is not None:
            first, last = start + inner[0], start + inner[1]
            marks[1:2] = [(first, QUESTION), (last, OPTIONS), (stop - tail, QUESTION)]
        spans = _joined(marks)
    answers = {continuation, *_others(continuation, document.choices)}
    same = common_start([*answers]) if len(answers) > 1 else 0
    rest = common_end([text[same:] for text in answers])
    whole = end + len(continuation)
    return [*spans, *_joined([(end + same, SAME_START), (whole - rest, DIFFERENCE), (whole, SAME_END)], end)]


def _joined(marks: Sequence[tuple[int, str]], start: int = 0) -> list[tuple[int, int, str]]:
    """Spans from the end of one to the end of the next; empty ones are left out."""
    out = []
    for end, name in marks:
        if end > start:
            out.append((start, end, name))
            start = end
    return out


def _others(continuation: str, choices: Sequence[str]) -> list[str]:
    """The choices as they stand behind the context, with the delimiter that this one has."""
    text = continuation.lstrip()
    delimiter = continuation[: len(continuation) - len(text)]
    return [delimiter + choice.lstrip() for choice in choices]


def _options(text: str, choices: Sequence[str]) -> tuple[int, int] | None:
    """From where to where the choices stand in a question; None unless all of them are there, in their order."""
    if len(choices) < 2 or not all(choice.strip() for choice in choices):
        return None
    labels = all(len(choice.strip()) <= LONGEST_LABEL for choice in choices)
    matches, at = [], 0
    for choice in choices:
        word = re.escape(choice.strip())
        match = re.compile(MARKED.format(word) if labels else rf"(?<!\w){word}(?!\w)").search(text, at)
        if match is None:
            return None
        matches.append(match)
        at = match.end()
    start = matches[0].start()
    if labels:
        lines = text.find("\n", at)
        at = len(text) if lines < 0 else lines
    return start, at


def common_start(texts: Sequence[str]) -> int:
    """How many letters all texts begin with, up to the beginning of a word; all where they are the same."""
    if len(set(texts)) == 1:
        return len(texts[0])
    first, last = min(texts), max(texts)
    shared = first[: next((at for at, letter in enumerate(first) if last[at : at + 1] != letter), len(first))]
    return len(shared) - len(_part_of_word(shared[::-1])) if _is_torn(shared, texts) else len(shared)


def _is_torn(shared: str, texts: Sequence[str]) -> bool:
    return (
        bool(shared) and shared[-1].isalnum() and any(text[len(shared) : len(shared) + 1].isalnum() for text in texts)
    )


def _part_of_word(text: str) -> str:
    match = re.match(r"\w*", text)
    return match[0] if match else ""


def common_end(texts: Sequence[str]) -> int:
    """How many letters all texts end with, from the end of a word on."""
    return 0 if len(set(texts)) == 1 else common_start([text[::-1] for text in texts])


def tails(owns: Sequence[str]) -> int:
    """Letters that the own texts of all documents end with; 0 where fewer than two differ."""
    return common_end(owns) if len(set(owns)) > 1 else 0
