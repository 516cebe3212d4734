"""Which kinds of token a splice hurts most: predicates on a token in its text, and a table of KL by them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sae_lm_eval.attribution.token_kinds import TokenWords, has_digit

SENTENCE_END = re.compile(r"[.!?。！？\n]")  # noqa: RUF001
EXAMPLES = 3


@dataclass(frozen=True)
class Token:
    """A token where it stands.

    `index` counts from 0 at the beginning of its sentence; `count` is how often the token occurs in the texts that
    are tabulated together; `word` is its index among the tokens of its word and how many these are, None outside
    of words.
    """

    text: str
    index: int
    count: int
    word: tuple[int, int] | None
    special: bool


Category = Callable[[Token], bool]
CATEGORIES: dict[str, dict[str, Category]] = {
    "position in the sentence": {
        "1st token": lambda t: t.index == 0,
        "2nd to 5th": lambda t: 1 <= t.index <= 4,
        "later": lambda t: t.index > 4,
    },
    "frequency in these texts": {
        "once": lambda t: t.count == 1,
        "2 to 4 times": lambda t: 2 <= t.count <= 4,
        "5 times or more": lambda t: t.count >= 5,
    },
    "kind": {
        "whole word": lambda t: t.word is not None and t.word[1] == 1,
        "split word, 1st token": lambda t: t.word is not None and t.word[1] > 1 and t.word[0] == 0,
        "split word, later token": lambda t: t.word is not None and t.word[0] > 0,
        "digit": lambda t: not t.special and has_digit(t.text),
        "punctuation": lambda t: not t.special and bool(t.text.strip()) and not any(c.isalnum() for c in t.text),
        "special token": lambda t: t.special,
    },
}


@dataclass(frozen=True)
class Example:
    """A token between what stands before and after it, and the KL in its place (nats)."""

    before: str
    token: str
    after: str
    kl: float


@dataclass(frozen=True)
class CategoryKl:
    """A category: mean KL in nats, None where it has no token; its share of the sum over all tokens, None of zero."""

    group: str
    category: str
    tokens: int
    mean: float | None
    share: float | None
    worst: tuple[Example, ...]


def described_tokens(
    texts: Sequence[Sequence[str]], ids: Sequence[Sequence[int]], special: frozenset[int]
) -> list[list[Token]]:
    """Every token of `texts`, which are the pieces that `ids` add."""
    counts = Counter(i for row in ids for i in row)
    out = []
    for row, row_ids in zip(texts, ids, strict=True):
        # The name of a special token, as in "</s>", is no word.
        written = ["" if i in special else piece for piece, i in zip(row, row_ids, strict=True)]
        places = zip(row, _in_sentence(written), _in_word(written), row_ids, strict=True)
        out.append([Token(piece, index, counts[i], word, i in special) for piece, index, word, i in places])
    return out


def tabulate(tokens: Sequence[Sequence[Token]], kls: Sequence[Sequence[float | None]]) -> list[CategoryKl]:
    """A row for every category; a token whose KL is None stands in contexts only."""
    counted = [
        (token, kl, row, i)
        for row, of_row in enumerate(kls)
        for i, (token, kl) in enumerate(zip(tokens[row], of_row, strict=True))
        if kl is not None
    ]
    total = sum(kl for _, kl, *_ in counted)
    rows = []
    for group, categories in CATEGORIES.items():
        for name, belongs in categories.items():
            members = [entry for entry in counted if belongs(entry[0])]
            own = sum(kl for _, kl, *_ in members)
            worst = sorted((m for m in members if m[1] > 0), key=lambda m: -m[1])[:EXAMPLES]
            rows.append(
                CategoryKl(
                    group,
                    name,
                    len(members),
                    own / len(members) if members else None,
                    own / total if total else None,
                    tuple(_example(tokens[row], i, kl) for _, kl, row, i in worst),
                )
            )
    return rows


def _example(tokens: Sequence[Token], i: int, kl: float, before: int = 40, after: int = 20) -> Example:
    left = "".join(t.text for t in tokens[max(0, i - before) : i])
    right = "".join(t.text for t in tokens[i + 1 : i + 1 + after])
    left = f"…{left[-before:]}" if len(left) > before or i > before else left
    right = f"{right[:after]}…" if len(right) > after or i + 1 + after < len(tokens) else right
    return Example(left, tokens[i].text, right, kl)


def _in_sentence(pieces: Sequence[str]) -> list[int]:
    out, index = [], 0
    for piece in pieces:
        out.append(index)
        index = 0 if SENTENCE_END.search(piece) else index + 1
    return out


def _in_word(pieces: Sequence[str]) -> list[tuple[int, int] | None]:
    """Index in its word and the word's number of tokens, for each piece that holds a part of one word."""
    ends = np.cumsum([0, *map(len, pieces)])
    owners = TokenWords.from_spans("".join(pieces), np.stack([ends[:-1], ends[1:]], axis=1)).owner.tolist()
    words = [None if word < 0 else word for word in owners]
    sizes, seen, out = Counter(words), Counter(), []
    for word in words:
        out.append(None if word is None else (seen[word], sizes[word]))
        seen[word] += 1
    return out
