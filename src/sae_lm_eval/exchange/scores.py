"""Scores of dictionaries that other projects measured: what they are, whatever file they were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange.dictionary_names import DictionaryName
from sae_lm_eval.files.reading import shown


@dataclass(frozen=True)
class ScoreKind:
    """A score's name, who measured it, and which way is better, which may be no more than what is usual."""

    name: str
    origin: str
    higher_is_better: bool = True
    is_assumed: bool = False

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        return f"{'taken to be ' if self.is_assumed else ''}{'higher' if self.higher_is_better else 'lower'}"

    @property
    def title(self) -> str:
        return f"{self.name} ({self.origin})"


@dataclass(frozen=True)
class DictionaryScore:
    """One value of one dictionary, with the file that it stands in."""

    kind: ScoreKind
    dictionary: DictionaryName
    value: float
    file: str


@dataclass(frozen=True)
class ScoreSet:
    """All scores that were read, and what a reader should know of the reading."""

    scores: tuple[DictionaryScore, ...]
    notes: tuple[str, ...] = ()

    def by_kind(self) -> Mapping[ScoreKind, Sequence[DictionaryScore]]:
        """In the order in which they were read."""
        kinds: dict[ScoreKind, list[DictionaryScore]] = {}
        for score in self.scores:
            kinds.setdefault(score.kind, []).append(score)
        return kinds


def without_repeats(scores: Sequence[DictionaryScore]) -> tuple[DictionaryScore, ...]:
    """The scores, equal ones once. Raises `UserError` where a dictionary has two values of one score."""
    unique: dict[tuple[ScoreKind, DictionaryName], DictionaryScore] = {}
    for score in scores:
        place = score.kind, score.dictionary
        before = unique.setdefault(place, score)
        if before.value != score.value:
            where = f"'{shown(before.file, 200)}'"
            where += f" and '{shown(score.file, 200)}'" if score.file != before.file else ""
            raise UserError(
                f"{shown(str(score.dictionary), 200)} has two values of {shown(score.kind.title, 200)}: "
                f"{before.value:g} and {score.value:g}, in {where}. Keep one."
            )
    return tuple(unique.values())
