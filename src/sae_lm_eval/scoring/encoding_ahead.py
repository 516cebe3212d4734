"""Tokenizing many texts that will be asked for one by one: in batches, which a fast tokenizer spreads over cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

TEXTS_AT_ONCE = 512


class EncodingAhead:
    """Token ids of `texts`, which are asked for in about this order.

    `encode` takes some of the texts and gives the ids of each, as it would by itself. The texts behind one that is
    asked for are encoded with it. Only these are held, since the texts of a suite are long and many.
    """

    def __init__(self, texts: Iterable[str], encode: Callable[[Sequence[str]], Sequence[list[int]]]):
        self._texts, self._encode = iter(texts), encode
        self._encoded: dict[str, list[int]] = {}

    def get(self, text: str) -> list[int] | None:
        """The ids of a text, None if it is not among those that come next."""
        if text not in self._encoded:
            coming = list(dict.fromkeys(islice(self._texts, TEXTS_AT_ONCE)))
            ids = self._encode(coming) if coming else ()
            self._encoded = dict(zip(coming, ids, strict=True))
        encoded = self._encoded.get(text)
        return None if encoded is None else list(encoded)


def texts_of_pairs(pairs: Iterable[tuple[str, str]]) -> Iterable[str]:
    """What lm_eval encodes of contexts and continuations: both together, and the context without spaces at its end."""
    for context, continuation in pairs:
        if context:
            yield context + continuation
            yield context.rstrip()
