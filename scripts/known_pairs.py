"""Pairs of models of which is known what the smaller one's compute, or parameters, are of the larger one's.

Two runs of the OLMo ladder with as many tokens per parameter, on one text: the smaller one has a known fraction of the
larger one's 6ND, and its loss is what that fraction buys. Two Pythia models saw the same tokens: the smaller one has a
known fraction of the larger one's parameters.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sae_lm_eval.scaling.data_files import Row, data_path, read_rows
from sae_lm_eval.scaling.ladder import LADDER, ladder_runs, run_size
from sae_lm_eval.scaling.law_estimates import COMPUTE, PARAMETERS, log_relative
from sae_lm_eval.scaling.laws import Law
from sae_lm_eval.scaling.original_model import Original

Quantity = Literal["effective compute", "effective parameters"]
# Tokens per parameter of the runs called 1xC, where the parameters of the output head count and the embedding's do not.
CHINCHILLA = 20


@dataclass(frozen=True, kw_only=True)
class KnownPair:
    """Two models on one text. `truth` is the smaller one's amount as a fraction of the larger one's, `rise` its loss
    less the larger one's (nats/token), and `params` its parameters with embeddings; `original` is the larger one.
    `source` says which set of losses, where a text has several.
    """

    quantity: Quantity
    text: str
    source: str
    smaller: str
    larger: str
    params: float
    original: Original
    truth: float
    rise: float
    tokens_per_parameter: int | None = None

    @property
    def cell(self) -> tuple[str, int | None]:
        return self.text, self.tokens_per_parameter

    def bias(self, law: Law) -> float:
        """log(log f / log truth), with f the law's fraction: 0 for a law that is right, at any depth."""
        return math.log(log_relative(law, self.original, self.rise, self.quantity) / math.log(self.truth))

    def has(self, size: str) -> bool:
        return size in (self.smaller, self.larger)


@functools.cache
def compute_pairs() -> tuple[KnownPair, ...]:
    """Each two sizes of the ladder that were trained on as many tokens per parameter, on each text."""
    runs = [row for row in ladder_runs() if row["role"] == "fit"]
    pairs = []
    for small, large in itertools.combinations(sorted(runs, key=lambda row: row["params"]), 2):
        same = (small["text"], _ratio(small)) == (large["text"], _ratio(large))
        if same and small["params"] < large["params"]:
            truth = small["params"] * small["tokens"] / (large["params"] * large["tokens"])
            pair = _pair(COMPUTE, small, large, truth, text=small["text"], source=LADDER, ratio=_ratio(large))
            pairs.append(pair)
    return tuple(pairs)


@functools.cache
def parameter_pairs() -> tuple[KnownPair, ...]:
    """Each two Pythia models, on both sets of losses that are published on the Pile."""
    rows = [row for row in read_rows(data_path("families.csv"), required=["family"]) if "pythia" in row["family"]]
    pairs = []
    for small, large in itertools.combinations(sorted(rows, key=lambda row: row["params"]), 2):
        if small["family"] == large["family"] and small["params"] < large["params"]:
            truth = small["params"] / large["params"]
            pairs.append(_pair(PARAMETERS, small, large, truth, text="pile", source=small["family"]))
    return tuple(pairs)


def sizes(pairs: Iterable[KnownPair]) -> tuple[str, ...]:
    """The models' sizes, in the order of their parameters."""
    larger = {pair.larger: pair.original.params or 0 for pair in pairs}
    return tuple(dict.fromkeys([*(pair.smaller for pair in pairs if pair.smaller not in larger), *larger]))


def pairs_without(pairs: Sequence[KnownPair], size: str) -> list[KnownPair]:
    """The pairs in which a size has no part."""
    return [pair for pair in pairs if not pair.has(size)]


def _pair(
    quantity: Quantity, small: Row, large: Row, truth: float, *, text: str, source: str, ratio: int | None = None
) -> KnownPair:
    original = Original(
        name=large["model"],
        params=float(large["params"]),
        params_non_embedding=float(large.get("params_non_embedding") or large["params"]),
        tokens=float(large["tokens"]),
    )
    return KnownPair(
        quantity=quantity,
        text=text,
        source=source,
        smaller=run_size(small),
        larger=run_size(large),
        params=float(small["params"]),
        original=original,
        truth=truth,
        rise=small["loss"] - large["loss"],
        tokens_per_parameter=ratio,
    )


def _ratio(row: Row) -> int:
    return CHINCHILLA * int(row["model"].partition("-")[2].removesuffix("xC"))
