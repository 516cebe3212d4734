"""Edits of a dictionary's latents on the way to its reconstruction: the largest kept, some ablated, some clamped.

No torch, so that mistakes are told before it is imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sae_lm_eval.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from sae_lm_eval.dictionaries.dictionary import Dictionary


@dataclass(frozen=True)
class LatentEdits:
    """Of each position the `keep_top` largest activations are kept; latents in `ablate` become 0, and those in `clamp`
    the value beside them. They are made in this order, wherever the dictionary is spliced in.
    """

    keep_top: int | None = None
    ablate: tuple[int, ...] = ()
    clamp: tuple[tuple[int, float], ...] = ()

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
        return ", ".join([*parts, *([f"clamp={clamped}"] if clamped else [])])

    def check_width(self, name: str, width: int) -> None:
        """Raise `UserError` where the dictionary `name`, of `width` latents, lacks one of these."""
        if self.keep_top is not None and self.keep_top > width:
            raise UserError(f"keep_top={self.keep_top}: {name} has {width:,} latents.")
        for latent in (*self.ablate, *(latent for latent, _ in self.clamp)):
            if latent >= width:
                raise UserError(f"{name} has no latent {latent}: they run from 0 to {width - 1}.")

    def __call__(self, latents: Tensor) -> Tensor:
        """What becomes of the activations of latents, (..., d_dictionary)."""
        if self.keep_top is not None and self.keep_top < latents.shape[-1]:
            top = latents.abs().topk(self.keep_top, dim=-1).indices
            latents = latents.new_zeros(latents.shape).scatter(-1, top, latents.gather(-1, top))
        if not self.ablate and not self.clamp:
            return latents
        latents = latents.clone()
        latents[..., list(self.ablate)] = 0
        for latent, value in self.clamp:
            latents[..., latent] = value
        return latents


NO_EDITS = LatentEdits()


def edits_of(keep_top: Any = None, ablate: Any = None, clamp: Any = None) -> LatentEdits:
    """The edits that the arguments of these names describe: `keep_top=32`, `ablate=12+57`, `clamp=12:3.5+57:0`.

    Raises `UserError` where one of them does not read so, or a latent is both ablated and clamped.
    """
    latents = tuple(_latent(part, f"ablate={ablate}") for part in _parts(ablate))
    clamped: dict[int, float] = {}
    for part in _parts(clamp):
        latent, colon, value = part.partition(":")
        number = _latent(latent, f"clamp={clamp}")
        try:
            clamped[number] = float(value) if colon else math.nan
        except ValueError:
            clamped[number] = math.nan
        if not math.isfinite(clamped[number]):
            raise UserError(f"clamp={clamp} is not of the form LATENT:VALUE, as in clamp=12:3.5+57:0.")
    if both := sorted(set(latents) & set(clamped)):
        raise UserError(f"Latent {both[0]} is both ablated and clamped: give it one of the two.")
    if len(set(latents)) < len(latents) or len(clamped) < len(_parts(clamp)):
        raise UserError(f"ablate={ablate}, clamp={clamp}: a latent is named twice.")
    return LatentEdits(None if keep_top is None else _whole(keep_top), latents, tuple(clamped.items()))


def edited(dictionary: Dictionary, edits: LatentEdits) -> Dictionary:
    """The dictionary with `edits` of its latents.

    Its reconstruction moves by what its decoder makes of the edited latents less what it makes of the others, so that
    skip connections and whatever else a dictionary adds stay as they are.

    Raises `UserError` where it has no latents that can be decoded, or none of a number.
    """
    if not edits:
        return dictionary
    if dictionary.cross_layer is not None:
        raise UserError(
            f"{dictionary.name} is of a cross-layer transcoder, whose latents write at several layers: {edits} is for "
            f"dictionaries of one layer."
        )
    encode, decode, width = dictionary.encode, dictionary.decode, dictionary.d_dictionary
    if encode is None or decode is None or width is None or dictionary.sequential:
        raise UserError(f"{dictionary.name} has no latents to edit ({edits}): it needs an encode and a decode.")
    edits.check_width(dictionary.name, width)

    def reconstruct(x: Tensor) -> Tensor:
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


def _parts(given: Any) -> list[str]:
    return [] if given is None else str(given).split("+")


def _latent(text: str, where: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{where}: '{text}' is no latent: give numbers from 0 on, joined by '+', as in ablate=12+57.")
    return int(text)


def _whole(value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or isinstance(value, bool) or (number != value and str(number) != str(value)):
        raise UserError(f"keep_top={value} must be a whole number of at least 1.")
    return number
