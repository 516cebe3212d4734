"""Token ids -> the text that each adds, made safe to show."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

Decode = Callable[[Sequence[int]], str]
INCOMPLETE = "\ufffd"  # what a decoder gives for the first bytes of a character
MARKS = {"\n": "⏎", "\t": "⇥", " ": "·", "": "▫"}


def decoder(tokenizer: Any) -> Decode:
    """Ids to text as the tokenizer has it, special tokens included."""
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


class Detokenizer:
    """The text that each further token adds to those before it.

    A token that ends inside a character adds "", and the one that completes the character adds all of it. Decoding
    starts a few tokens back each time, as spaces depend on what is before.
    """

    def __init__(self, decode: Decode, before: Sequence[int] = ()) -> None:
        self.decode = decode
        self.emitted = list(before)[-4:]  # their text is out
        self.pending: list[int] = []  # theirs is not

    def add(self, token: int) -> str:
        self.pending.append(token)
        old, new = self.decode(self.emitted), self.decode([*self.emitted, *self.pending])
        if new.endswith(INCOMPLETE) or len(new) < len(old):
            return ""
        self.emitted, self.pending = self.pending, []
        return new[len(old) :]


def pieces(decode: Decode, ids: Sequence[int], start: int = 0) -> list[str]:
    """The text that each of `ids[start:]` adds to what is before it."""
    text = Detokenizer(decode, ids[:start])
    return [text.add(token) for token in ids[start:]]


def namer(tokenizer: Any, anchor: int) -> Callable[[int], str]:
    """What to call a token out of context: its text after the token `anchor`, spaces and all."""
    decode = decoder(tokenizer)
    before = decode([anchor])

    @cache
    def name(token: int) -> str:
        text = decode([anchor, token])
        if INCOMPLETE in text or not text.startswith(before):
            return str(tokenizer.convert_ids_to_tokens(token))
        return text[len(before) :]

    return name


@cache
def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf"):
        return character
    return f"⟨U+{ord(character):04X}⟩" if ord(character) != 0x200D else character  # the joiner of emoji and scripts


def visible(text: str) -> str:
    """`text` with a name for each control or formatting character, which would steer the terminal or the page."""
    return "".join(map(_visible, text))


def token_label(text: str) -> str:
    """A token's text as a label: visible, and its outer spaces and line breaks marked."""
    inner = text.strip(" \n\t")
    if not inner:
        return "".join(MARKS[c] for c in text) or MARKS[""]
    head, tail = text[: text.index(inner)], text[text.index(inner) + len(inner) :]
    return "".join(MARKS[c] for c in head) + visible(inner) + "".join(MARKS[c] for c in tail)
