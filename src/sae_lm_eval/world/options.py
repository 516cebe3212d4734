"""A choice of the generator: what may be drawn, with which probability. Everything is in nats."""

import math
from bisect import bisect
from collections.abc import Hashable, Iterable, Sequence
from itertools import accumulate
from random import Random
from typing import Any, Protocol


class RandomChoice(Protocol):
    """One independent random choice; `surprisal` is -log p(value), infinite outside the support."""

    def draw(self, rng: Random) -> Any: ...

    def surprisal(self, value: Hashable) -> float: ...

    def entropy(self) -> float: ...


def pick(rng: Random, values: Sequence):
    """A uniform draw that uses only Random.random(), whose stream is the same in every Python version."""
    return values[int(rng.random() * len(values))]


class Uniform:
    """Each of `values` with probability 1/n; entropy log n."""

    def __init__(self, values: Iterable[Hashable]):
        self.values = tuple(values)
        self._known = frozenset(self.values)
        if len(self._known) != len(self.values):
            raise ValueError("Uniform: a value occurs twice, so its probability would not be 1/n.")

    def draw(self, rng: Random) -> Any:
        return pick(rng, self.values)

    def surprisal(self, value: Hashable) -> float:
        return self.entropy() if value in self._known else math.inf

    def entropy(self) -> float:
        return math.log(len(self.values))

    def probabilities(self) -> list[tuple[Any, float]]:
        return [(value, 1 / len(self.values)) for value in self.values]


class Weighted:
    """`values` with probabilities in proportion to `weights`; entropy -sum p log p."""

    def __init__(self, values: Iterable[Hashable], weights: Iterable[float]):
        self.values = tuple(values)
        weights = tuple(weights)
        total = math.fsum(weights)
        self._probability = {v: w / total for v, w in zip(self.values, weights, strict=True)}
        self._cumulative = list(accumulate(self._probability.values()))

    def draw(self, rng: Random) -> Any:
        return self.values[min(bisect(self._cumulative, rng.random()), len(self.values) - 1)]

    def surprisal(self, value: Hashable) -> float:
        p = self._probability.get(value)
        return -math.log(p) if p else math.inf

    def entropy(self) -> float:
        return -math.fsum(p * math.log(p) for p in self._probability.values())

    def probabilities(self) -> list[tuple[Any, float]]:
        return list(self._probability.items())


class Arrangement:
    """An ordered choice of k distinct members of `pool`, all equally likely; entropy log n!/(n-k)!."""

    def __init__(self, pool: Sequence[str], k: int):
        self.pool, self.k = tuple(pool), k
        self._known = frozenset(self.pool)

    def draw(self, rng: Random) -> tuple[str, ...]:
        chosen: list[str] = []
        while len(chosen) < self.k:
            candidate = pick(rng, self.pool)
            if candidate not in chosen:
                chosen.append(candidate)
        return tuple(chosen)

    def surprisal(self, value: Hashable) -> float:
        possible = (
            isinstance(value, tuple) and len(value) == self.k == len(set(value)) and self._known.issuperset(value)
        )
        return self.entropy() if possible else math.inf

    def entropy(self) -> float:
        return math.log(math.perm(len(self.pool), self.k))
