"""How far an estimator is off on known pairs of models, and how wide an interval must be to hold what it has not seen.

Of a pair, k = log f / log truth, with f the estimator's fraction: an estimator that is right has k = 1 at every depth.
The calibrated fraction is f^(1/k), k being the geometric mean over the pairs of the same cell (text, tokens per
parameter), or of all other texts where the text is not known. The interval has k times and divided by exp(w). w is a
quantile of |log k - its mean without a size|, over the pairs of each size that is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from known_pairs import KnownPair, pairs_without, sizes

from sae_lm_eval.scaling.ladder import ladder_law
from sae_lm_eval.scaling.laws import Law

LEVELS = tuple(np.round(np.arange(0.90, 1.0001, 0.005), 3))
TARGET = 0.95


@dataclass(frozen=True)
class Estimator:
    """`bias(pair, size)` is log k of a pair by an estimator that has not seen `size`.

    One that is `fitted` to the pairs' own text has nothing left to be corrected: its mean is taken as 0.
    """

    name: str
    bias: Callable[[KnownPair, str | None], float]
    fitted: bool = False


@dataclass(frozen=True)
class Missed:
    """log k of a pair of the size that was left out, less the mean of its cell without that size."""

    size: str
    pair: KnownPair
    centre: float
    error: float


@dataclass(frozen=True)
class Held:
    """Whether an interval made without the pair's `size` (and text, where it is not known) holds the truth.

    `width` is the interval's upper bound over its lower one.
    """

    size: str
    pair: KnownPair
    holds: bool
    width: float


@dataclass(frozen=True)
class Calibrated:
    """The quantile of what is missed that makes the intervals, and what they hold."""

    level: float
    held: tuple[Held, ...] = field(repr=False)

    @property
    def coverage(self) -> float:
        return float(np.mean([held.holds for held in self.held]))


def by_law(law: Law) -> Estimator:
    """A borrowed law."""
    return Estimator(law.name, lambda pair, _: pair.bias(law))


def by_the_ladder() -> Estimator:
    """The ladder's fit on the pair's own text, without the size that is left out."""
    return Estimator("olmo_ladder", lambda pair, size: pair.bias(ladder_law(pair.text, size)), fitted=True)


def centre(pairs: Sequence[KnownPair], estimator: Estimator, cell: KnownPair, *, known_text: bool) -> float:
    """The mean of log k over a cell: of the text itself where that is known, otherwise of all texts of `pairs`."""
    if estimator.fitted:
        return 0.0
    alike = [
        p for p in pairs if (p.cell == cell.cell if known_text else p.tokens_per_parameter == cell.tokens_per_parameter)
    ]
    return float(np.mean([estimator.bias(pair, None) for pair in alike]))


def missed(pairs: Sequence[KnownPair], estimator: Estimator, *, known_text: bool) -> list[Missed]:
    """By how much each size's pairs are missed when the size is left out, and the text where it is not known."""
    errors = []
    for size in sizes(pairs):
        rest = pairs_without(pairs, size)
        centres: dict[tuple[str, int | None], float] = {}
        for pair in pairs:
            if not pair.has(size):
                continue
            if pair.cell not in centres:
                others = rest if known_text else [candidate for candidate in rest if candidate.text != pair.text]
                centres[pair.cell] = centre(others, estimator, pair, known_text=known_text)
            at = centres[pair.cell]
            errors.append(Missed(size, pair, at, estimator.bias(pair, size) - at))
    return errors


def half_width(errors: Iterable[Missed], text: str | None, level: float) -> float:
    """w: the quantile of what is missed on all texts; of a known text, no less than what is missed on it."""
    errors = list(errors)
    own = [abs(error.error) for error in errors if error.pair.text == text]
    every = [abs(error.error) for error in errors]
    quantile = [float(np.quantile(values, level)) for values in (every, own) if values]
    return max(quantile)


def held_out(pairs: Sequence[KnownPair], estimator: Estimator, level: float, *, known_text: bool) -> Calibrated:
    """What intervals hold of each size's pairs, made of the pairs without that size alone.

    Where the text is known the width is that of the other texts, or of the same where that is more.
    """
    errors = missed(pairs, estimator, known_text=known_text)
    intervals = []
    for size in sizes(pairs):
        rest = pairs_without(pairs, size)
        spread = missed(rest, estimator, known_text=known_text)
        for text in dict.fromkeys(pair.text for pair in pairs):
            seen = spread if known_text else [error for error in spread if error.pair.text != text]
            wide = half_width(seen, text if known_text else None, level)
            for error in errors:
                if error.size != size or error.pair.text != text:
                    continue
                shallow, deep = (np.exp(-error.centre - sign * wide) for sign in (1, -1))
                depth = -np.log(error.pair.truth) * np.exp(error.centre + error.error)
                intervals.append(
                    Held(size, error.pair, abs(error.error) <= wide, float(np.exp(depth * (deep - shallow))))
                )
    return Calibrated(level, tuple(intervals))


def least_width(pairs: Sequence[KnownPair], estimator: Estimator, *, known_text: bool) -> Calibrated:
    """The least quantile of `LEVELS` whose intervals hold `TARGET` of what they have not seen, or else the greatest."""
    for level in LEVELS:
        calibrated = held_out(pairs, estimator, float(level), known_text=known_text)
        if calibrated.coverage >= TARGET:
            return calibrated
    return held_out(pairs, estimator, float(LEVELS[-1]), known_text=known_text)
