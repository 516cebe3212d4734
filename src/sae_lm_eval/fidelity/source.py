"""A text whose documents are scored, and what is asked of the adapter that scores them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sae_lm_eval.scaling import Original
from sae_lm_eval.scoring.request import Query
from sae_lm_eval.scoring.scorer import Scorer
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.splicing.variants import Choices

POSITIONS = ("all", "non_special")


class Adapter(Protocol):
    """What is asked of the adapter; see `SaeHFLM`."""

    variant: Variant
    choices: Choices
    special_ids: frozenset[int]
    mean_tokens: int
    original: Original

    @property
    def variant_name(self) -> str: ...

    @property
    def innermost(self) -> Any: ...

    def identity(self) -> str: ...

    def windows(self, documents: Iterable[str], tokens: int) -> list[list[int]]: ...

    def rolling(self, document: str) -> list[Query]: ...

    def scorer(self, variants: Sequence[Variant]) -> Scorer: ...


@dataclass(frozen=True)
class Source:
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
class Document:
    """`number` is its place in the text."""

    number: int
    text: str
    category: str | None
