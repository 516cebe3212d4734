"""Edits of a dictionary's latents on the way to its reconstruction: the largest kept, some ablated, some clamped.

No torch, so that mistakes are told before it is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_lm_eval.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sae_lm_eval.dictionaries.dictionary import Dictionary

ALL, LAST, AFTER_HEADER, FIRST = "all", "last", "after_header", "first"
POSITIONS = (ALL, LAST, AFTER_HEADER, f"{FIRST}:N")


class LatentName(NamedTuple):
    """A latent by its number, and by the layer that it reads at where there are several dictionaries."""

    layer: int | None
    number: int

    def __str__(self) -> str:
        return f"{self.number}" if self.layer is None else f"{self.layer}/{self.number}"


@dataclass(frozen=True)
class LatentEdits:
    """Of each position the `keep_top` largest activations are kept; latents in `ablate` become 0, and those in `clamp`
    the value beside them. They are made in this order, wherever the dictionary is spliced in.

    They hold at `positions`, one of `POSITIONS`, and of a dictionary at an attention's heads in those of `heads`, none
    standing for all.
    """

    keep_top: int | None = None
    ablate: tuple[LatentName, ...] = ()
    clamp: tuple[tuple[LatentName, float], ...] = ()
    positions: str = ALL
    heads: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.keep_top is not None or bool(self.ablate) or bool(self.clamp)

    @property
    def record(self) -> dict[str, str]:
        """As plain values for a results file; empty where nothing is edited."""
        return {"latent_edits": str(self)} if self else {}

    def __str__(self) -> str:
        parts = [] if self.keep_top is None else [f"keep_top={self.keep_top}"]
        parts += [f"ablate={'+'.join(map(str, self.ablate))}"] if self.ablate else []
        clamped = "+".join(f"{latent}:{value:g}" for latent, value in self.clamp)
        parts += [f"clamp={clamped}"] if clamped else []
        return ", ".join([*parts, *self.where])

    @property
    def where(self) -> list[str]:
        """Of positions and heads what narrows them, as it is written; empty where they hold at all of both."""
        positions = [] if self.positions == ALL else [f"latent_positions={self.positions}"]
        return [*positions, *([f"latent_heads={'+'.join(map(str, self.heads))}"] if self.heads else [])]

    @property
    def first(self) -> int | None:
        """How many positions of a text they hold at, None where the rule is another."""
        kind, _, count = self.positions.partition(":")
        return int(count) if kind == FIRST else None

    @property
    def looks_at_prompt(self) -> bool:
        """Whether the positions at which they hold depend on where a prompt or its few-shot header ends."""
        return bool(self) and self.positions in (LAST, AFTER_HEADER)

    @property
    def latents(self) -> tuple[LatentName, ...]:
        """Those that are named."""
        return (*self.ablate, *(latent for latent, _ in self.clamp))

    def of_layer(self, layer: int | None) -> LatentEdits:
        """Those of latents that read at `layer`."""

        def is_here(latent: LatentName) -> bool:
            return latent.layer in (None, layer)

        clamp = tuple((latent, value) for latent, value in self.clamp if is_here(latent))
        return replace(self, ablate=tuple(filter(is_here, self.ablate)), clamp=clamp)

    def check_width(self, name: str, width: int) -> None:
        """Raise `UserError` where the dictionary `name`, of `width` latents, lacks one of these."""
        if self.keep_top is not None and self.keep_top > width:
            raise UserError(f"keep_top={self.keep_top}: {name} has {width:,} latents.")
        for latent in self.latents:
            if latent.number >= width:
                raise UserError(f"{name} has no latent {latent.number}: they run from 0 to {width - 1}.")

    def __call__(self, latents: Tensor) -> Tensor:
        """What becomes of the activations of latents, (..., d_dictionary)."""
        if self.keep_top is not None and self.keep_top < latents.shape[-1]:
            top = latents.abs().topk(self.keep_top, dim=-1).indices
            latents = latents.new_zeros(latents.shape).scatter(-1, top, latents.gather(-1, top))
        if not self.ablate and not self.clamp:
            return latents
        latents = latents.clone()
        latents[..., [latent.number for latent in self.ablate]] = 0
        for latent, value in self.clamp:
            latents[..., latent.number] = value
        return latents


NO_EDITS = LatentEdits()


def edits_of(
    keep_top: Any = None, ablate: Any = None, clamp: Any = None, positions: Any = None, heads: Any = None
) -> LatentEdits:
    """The edits that the arguments of these names describe: `keep_top=32`, `ablate=12+57`, `clamp=12:3.5+57:0`, with
    `3/12` for latent 12 of layer 3, `latent_positions=first:4`, `latent_heads=0+3`.

    Raises `UserError` where one of them does not read so, or a latent is both ablated and clamped.
    """
    latents = tuple(_latent(part, f"ablate={ablate}") for part in _parts(ablate))
    clamped: dict[LatentName, float] = {}
    for part in _parts(clamp):
        latent, colon, value = part.partition(":")
        name = _latent(latent, f"clamp={clamp}")
        try:
            clamped[name] = float(value) if colon else math.nan
        except ValueError:
            clamped[name] = math.nan
        if not math.isfinite(clamped[name]):
            raise UserError(f"clamp={clamp} is not of the form LATENT:VALUE, as in clamp=12:3.5+57:0.")
    if both := sorted(set(latents) & set(clamped), key=str):
        raise UserError(f"Latent {both[0]} is both ablated and clamped: give it one of the two.")
    if len(set(latents)) < len(latents) or len(clamped) < len(_parts(clamp)):
        raise UserError(f"ablate={ablate}, clamp={clamp}: a latent is named twice.")
    edits = LatentEdits(
        None if keep_top is None else _whole(keep_top),
        latents,
        tuple(clamped.items()),
        ALL if positions is None else _positions(str(positions)),
        _heads(heads),
    )
    if not edits and (positions is not None or heads is not None):
        given = f"latent_positions={positions}" if positions is not None else f"latent_heads={heads}"
        raise UserError(f"{given} says where edits of latents hold: give keep_top=, ablate= or clamp= with it.")
    return edits


def edited(dictionary: Dictionary, edits: LatentEdits) -> Dictionary:
    """The dictionary of one layer with `edits` of its latents, at every position and in all that it writes.

    What its decoder makes of the latents changes alone: skip connections and whatever else a dictionary adds stay as
    they are. It encodes once where the latents pass through a module on the way of its reconstruction.

    Raises `UserError` where it has no latents that can be decoded, or none of a number.
    """
    if not edits:
        return dictionary
    encode, decode, width = dictionary.encode, dictionary.decode, dictionary.d_dictionary
    if encode is None or decode is None or width is None or dictionary.sequential:
        raise UserError(f"{dictionary.name} has no latents to edit ({edits}): it needs an encode and a decode.")
    edits.check_width(dictionary.name, width)
    passes = dictionary.latent_module

    def reconstruct(x: Tensor) -> Tensor:
        if passes is not None:
            with _in_place_of_output(passes, edits):
                return dictionary.reconstruct(x)
        # Some dictionaries keep between an encode and the next decode what they normalised by.
        return dictionary.reconstruct(x) + (decode(edits(encode(x))) - decode(encode(x)))

    return replace(
        dictionary,
        name=f"{dictionary.name} ({edits})",
        reconstruct=reconstruct,
        encode=lambda x: edits(encode(x)),
        latent_module=None,
        formula=None,
    )


@contextmanager
def _in_place_of_output(module: nn.Module, edits: LatentEdits) -> Iterator[None]:
    """Inside the scope, `module` gives what `edits` make of its output."""

    def edited_output(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Tensor:
        return edits(output)

    handle = module.register_forward_hook(edited_output)
    try:
        yield
    finally:
        handle.remove()


def _parts(given: Any) -> list[str]:
    return [] if given is None else str(given).split("+")


def _latent(text: str, where: str) -> LatentName:
    match = re.fullmatch(r"(?:(\d{1,4})/)?(\d{1,12})", text)
    if match is None:
        raise UserError(
            f"{where}: '{text}' is no latent: give numbers from 0 on, joined by '+', as in ablate=12+57, or in "
            f"ablate=3/12 with the layer before it."
        )
    return LatentName(None if match[1] is None else int(match[1]), int(match[2]))


def _positions(text: str) -> str:
    kind, colon, count = text.partition(":")
    if text in (ALL, LAST, AFTER_HEADER) or (kind == FIRST and re.fullmatch(r"[1-9]\d{0,8}", count)):
        return text
    hint = "" if colon else did_you_mean(text, (ALL, LAST, AFTER_HEADER))
    raise UserError(f"latent_positions={text} is no rule for positions.{hint} There are {', '.join(POSITIONS)}.")


def _heads(given: Any) -> tuple[int, ...]:
    parts = _parts(given)
    if not all(re.fullmatch(r"\d{1,4}", part) for part in parts) or len(set(map(int, parts))) < len(parts):
        raise UserError(
            f"latent_heads={given} names no heads: give numbers from 0 on, each once, as in latent_heads=0+3."
        )
    return tuple(map(int, parts))


def _whole(value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or isinstance(value, bool) or (number != value and str(number) != str(value)):
        raise UserError(f"keep_top={value} must be a whole number of at least 1.")
    return number
