"""What kind of token stands where: looked up by the letters that it covers. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# In the order in which they are tried: a token is of the first kind that fits.
KINDS = ("special", "newline", "digit", "punctuation", "name", "part of a word", "rare word", "word")
SPECIAL, NEWLINE, DIGIT, PUNCTUATION, NAME, PART, RARE, PLAIN = range(len(KINDS))


class Words:
    """Of the texts of a run: which words are names, which are rare.

    A name begins with a capital, and never occurs in these texts without. A rare word occurs in at most one of them.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        words = [set(WORD.findall(text)) for text in set(texts)]
        self._seen = set[str]().union(*words)
        self._texts = Counter(folded for text_words in words for folded in {word.lower() for word in text_words})

    def kind(self, word: str) -> int:
        if word[:1].isupper() and word[1:] == word[1:].lower() and len(word) > 1 and word.lower() not in self._seen:
            return NAME
        return RARE if self._texts[word.lower()] <= 1 else PLAIN


class TokenWords(NamedTuple):
    """The words of a text, and by its number the word that each token is of: that of its first letter; -1 is none."""

    words: list[str]
    owner: Int[np.ndarray, " tokens"]

    @classmethod
    def from_spans(cls, text: str, spans: Int[np.ndarray, "tokens 2"]) -> TokenWords:
        """Of tokens whose text is `text[start:end]`; those without text are of no word."""
        inside, words = np.full(len(text), -1), []
        for number, match in enumerate(WORD.finditer(text)):
            inside[match.start() : match.end()] = number
            words.append(match[0])
        letters = np.append(np.flatnonzero(inside >= 0), len(text))
        first = letters[np.searchsorted(letters[:-1], spans[:, 0])]
        return cls(words, np.where(first < spans[:, 1], np.append(inside, -1)[first], -1))


def has_digit(piece: str) -> bool:
    return any(letter.isdigit() for letter in piece)


def token_kinds(
    text: str, spans: Int[np.ndarray, "tokens 2"], special: np.ndarray, words: Words
) -> Int[np.ndarray, " tokens"]:
    """The kind of each token, whose text is `text[start:end]`; `special` are those without one."""
    of_text = TokenWords.from_spans(text, spans)
    word = np.where(special, -1, of_text.owner)
    pieces = np.bincount(word[word >= 0], minlength=max(1, len(of_text.words)))
    of_word = np.array([*map(words.kind, of_text.words), PLAIN])[word]
    torn = (word >= 0) & (pieces[word] > 1) & (of_word != NAME)
    out = np.where(word < 0, PUNCTUATION, np.where(torn, PART, of_word))
    for at, (start, end) in enumerate(spans.tolist()):
        piece = text[start:end]
        if special[at] or not piece:
            out[at] = SPECIAL
        elif "\n" in piece:
            out[at] = NEWLINE
        elif has_digit(piece):
            out[at] = DIGIT
    return out


def first_letters(text: str, spans: Int[np.ndarray, "tokens 2"]) -> Int[np.ndarray, " tokens"]:
    """Where each token's text begins behind its blanks; with these, where it is nothing else."""
    pieces = [text[start:end] for start, end in spans.tolist()]
    blanks = [len(piece) - len(piece.lstrip()) if piece.strip() else 0 for piece in pieces]
    return np.minimum(spans[:, 0] + np.array(blanks, dtype=int), len(text))
