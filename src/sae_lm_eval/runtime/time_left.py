"""How long a run will still take, by what each kind of its work took until now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

REQUESTS, TEXTS, DOCUMENTS, OTHER = "requests", "texts", "documents", "other"
# Documents are scored for each model by itself: the baseline alone, a variant beside the baseline and an ablation.
PASSES_OF_VARIANT = 3


@dataclass(frozen=True)
class Turn:
    """A model's turn to be evaluated; the first of a group has the requests and texts of all of the group run."""

    name: str
    is_first: bool
    is_baseline: bool = False


class TimeLeft:
    """Seconds until the last turn is over. `clock` is in seconds, from any beginning."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: list[Turn] = []
        self._kinds: tuple[str, ...] = ()
        self._took: list[tuple[str, Turn, float]] = []
        self._turn: Turn | None = None
        self._turn_began = 0.0
        self._of_kinds: dict[str, float] = {}  # what the kinds took in this turn
        self._kind: str | None = None
        self._kind_began = 0.0

    def schedule(self, turns: Sequence[Turn], kinds: Sequence[str]) -> None:
        """All turns that are to come, and the kinds of requests that each has."""
        self._left, self._kinds = list(turns), tuple(kinds)

    def begin_turn(self, name: str) -> None:
        """A model's turn begins; one that is not scheduled is left out of the sum."""
        self._turn = next((turn for turn in self._left if turn.name == name), None)
        if self._turn is not None:
            self._left.remove(self._turn)
        self._of_kinds, self._kind, self._turn_began = {}, None, self._clock()

    def begin(self, kind: str) -> None:
        """Requests of that kind are answered from now on."""
        self.end()
        self._kind, self._kind_began = kind, self._clock()

    def end(self) -> None:
        """The requests of the kind under way are answered."""
        if self._kind is not None:
            took = self._clock() - self._kind_began
            self._of_kinds[self._kind] = self._of_kinds.get(self._kind, 0.0) + took
            self._kind = None

    def end_turn(self) -> None:
        self.end()
        if self._turn is not None:
            whole = self._clock() - self._turn_began
            self._took += [(kind, self._turn, seconds) for kind, seconds in self._of_kinds.items()]
            self._took.append((OTHER, self._turn, whole - sum(self._of_kinds.values())))
        self._turn = None

    def seconds(self, done: float, of_pass: float | None = None) -> tuple[float, bool]:
        """What is left, and whether that is all of it: what nothing like it was seen of yet is not counted.

        `done` is the share of the pass under way that is done, and `of_pass` what is left of it, where that is known
        otherwise.
        """
        parts: list[float | None] = []
        if self._turn is not None:
            to_come = [kind for kind in self._kinds if kind not in self._of_kinds and kind != self._kind]
            parts += [self._expected(kind, self._turn) for kind in to_come]
            parts.append(self._rest_of_turn())
        if self._kind is not None:
            took = self._clock() - self._kind_began
            parts.append(of_pass if of_pass is not None else took * (1 - done) / done if done else None)
        for turn in self._left:
            parts += [self._expected(kind, turn) for kind in (*self._kinds, OTHER)]
        estimates = [part for part in parts if part is not None]
        return sum(estimates), len(estimates) == len(parts)

    def _rest_of_turn(self) -> float:
        """Of what is neither request, text nor document: metrics, and the files of the turn under way."""
        assert self._turn is not None
        under_way = self._clock() - self._kind_began if self._kind is not None else 0.0
        spent = self._clock() - self._turn_began - sum(self._of_kinds.values()) - under_way
        return max(0.0, (self._expected(OTHER, self._turn) or 0.0) - spent)

    def _seen(self) -> Iterator[tuple[str, Turn, float]]:
        yield from self._took
        if self._turn is not None:
            yield from ((kind, self._turn, seconds) for kind, seconds in self._of_kinds.items())

    def _expected(self, kind: str, turn: Turn) -> float | None:
        """Seconds for that kind of work in that turn, by turns of its sort; None where nothing tells."""
        seen = [(past_turn, seconds) for past_kind, past_turn, seconds in self._seen() if past_kind == kind]
        like = [seconds for past_turn, seconds in seen if _alike(kind, past_turn, turn)]
        if like:
            return fmean(like)
        any_other = fmean([seconds for _, seconds in seen]) if seen else None
        if kind == DOCUMENTS:
            return None if any_other is None else any_other * PASSES_OF_VARIANT
        if kind == OTHER:
            return any_other or 0.0  # before the first turn is over: files are written in moments
        return None if turn.is_first else 0.0


def _alike(kind: str, turn: Turn, other: Turn) -> bool:
    return turn.is_baseline == other.is_baseline if kind == DOCUMENTS else turn.is_first == other.is_first
