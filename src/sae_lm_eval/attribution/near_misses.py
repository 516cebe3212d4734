"""The part of an error that lies in the span of latents that just missed the threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm_eval.attribution.classes import NEAREST
from sae_lm_eval.attribution.directions import DirectionClass, Part
from sae_lm_eval.attribution.patches import EditedWatch
from sae_lm_eval.comparison.restored import MISSED
from sae_lm_eval.dictionaries.pre_activations import NearMisses, near_misses
from sae_lm_eval.splicing.splice import Splice, Variant

NUMBERS = 2**24  # of directions, held at a time
DEPENDENT = 1e-9  # of the largest eigenvalue: directions that add nothing to the others


@dataclass(frozen=True)
class MissedSpan:
    """The orthogonal projection of the error onto what the `count` latents write along that missed by least."""

    splice: Splice
    misses: NearMisses
    count: int

    def __call__(
        self,
        x: Float[Tensor, "*batch d_in"],
        y: Float[Tensor, "*batch d_out"],
        error: Float[Tensor, "*batch d_out"],
    ) -> Float[Tensor, "*batch d_out"]:
        z = self.splice.dictionary_input(x).reshape(-1, x.shape[-1])
        flat = error.reshape(-1, error.shape[-1])
        if not len(flat):  # of texts without a spliced position
            return torch.zeros_like(error)
        step = max(1, NUMBERS // (self.count * flat.shape[-1]))
        pieces = [self._of(z[at : at + step], flat[at : at + step]) for at in range(0, len(flat), step)]
        return torch.cat(pieces).reshape(error.shape).to(error)

    def _of(
        self, z: Float[Tensor, "positions d_in"], error: Float[Tensor, "positions d_out"]
    ) -> Float[Tensor, "positions d_out"]:
        latents, missed = self.misses.nearest(z, self.count)
        basis = self.misses.directions(latents).double() * missed[..., None]
        inverse = torch.linalg.pinv(basis @ basis.mT, hermitian=True, rtol=DEPENDENT)
        return (basis.mT @ (inverse @ (basis @ error.to(basis)[..., None])))[..., 0]


class MissedEnergy(EditedWatch[Tensor]):
    """Sums over positions of |error - part|^2 for each span, and of |error|^2, by hook; a watch of a forked pass."""

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant)
        misses = {splice.site_out.hook: near_misses(splice.dictionary) for splice in variant.splices}
        self.spans: list[Mapping[str, Part]] = [
            {s.site_out.hook: MissedSpan(s, misses[s.site_out.hook], count) for s in variant.splices}
            for count in NEAREST
        ]
        self.by_hook: dict[str, Tensor] = {}

    def measured(
        self,
        splice: Splice,
        x: Float[Tensor, "edited d_in"],
        y: Float[Tensor, "edited d_out"],
        new: Float[Tensor, "edited d_out"],
    ) -> Float[Tensor, " spans_and_one"]:
        error = (y.double() - new.double()) / (splice.scale or 1)  # of the dictionary's own, as `Moments` has it
        left = [error - span[splice.site_out.hook](x, y, error) for span in self.spans]
        return torch.stack([part.square().sum().cpu() for part in (*left, error)])

    def add(self, hook: str, measured: Float[Tensor, " spans_and_one"]) -> None:
        self.by_hook[hook] = self.by_hook.get(hook, torch.zeros_like(measured)) + measured

    def classes(self) -> list[DirectionClass]:
        """A class of each span, those of more latents around those of fewer."""
        shares = torch.stack([1 - sums[:-1] / sums[-1] for sums in self.by_hook.values()]).mean(0).tolist()
        return [
            DirectionClass(MISSED, f"{count} nearest latents", parts, energy, "")
            for count, parts, energy in zip(NEAREST, self.spans, shares, strict=True)
        ]
