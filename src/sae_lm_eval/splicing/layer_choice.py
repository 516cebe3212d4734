"""Layers by their numbers, as `0-4+9`, or as `best:3` the three that cost least alone. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sae_lm_eval.errors import UserError

BEST = "best"


@dataclass(frozen=True)
class LayerChoice:
    """Some layers: those of `ranges`, or the `best` that are to be found."""

    ranges: tuple[range, ...] = ()
    best: int | None = None

    def __contains__(self, layer: object) -> bool:
        return any(layer in part for part in self.ranges)

    def __iter__(self) -> Iterator[int]:
        """Those that are named."""
        return (layer for part in self.ranges for layer in part)

    def __str__(self) -> str:
        if self.best is not None:
            return f"{BEST}:{self.best}"
        return "+".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in self.ranges)


def named_layers(given: Any, where: str) -> LayerChoice:
    """The layers that `0-4+9` names. Raises `UserError`, which begins with `where`, for none or one named twice."""
    parts = [re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part) for part in str(given).split("+")]
    layers = LayerChoice(tuple(range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part))
    name = where.rpartition(" ")[2]
    if isinstance(given, bool) or not all(parts) or not all(layers.ranges):
        raise UserError(f"{where}={given} names no layers: give numbers and ranges, as in {name}=0-4+9.")
    if twice := [layer for layer in layers if sum(layer in part for part in layers.ranges) > 1]:
        raise UserError(f"{where}={given} names layer {twice[0]} twice.")
    return layers


def layers_of(given: Any) -> LayerChoice | None:
    """The layers that `splice_layers=` names or asks for, None for all. Raises `UserError` where it does neither."""
    if given is None:
        return None
    kind, _, count = str(given).partition(":")
    if kind != BEST:
        return named_layers(given, "splice_layers")
    if not re.fullmatch(r"[1-9]\d{0,3}", count):
        raise UserError(f"splice_layers={given} is not of the form best:COUNT, as in splice_layers=best:3.")
    return LayerChoice(best=int(count))
