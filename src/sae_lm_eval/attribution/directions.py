"""The error of a dictionary by direction: what of it is put back, or left in, wherever it is spliced in."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sae_lm_eval.attribution.classes import COMPONENTS, DIRECTIONS, LEADING
from sae_lm_eval.attribution.patches import ONLY, RANDOM, RESTORED, EditedWatch
from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.splice import Splice, Variant

LINEAR, REST = "linear in the activation", "not linear"
RIDGE = 1e-3  # of the mean variance of the activation

# Of what a dictionary reads, the activation and its error, a part of the error.
Part = Callable[
    [Float[Tensor, "*batch d_in"], Float[Tensor, "*batch d_out"], Float[Tensor, "*batch d_out"]],
    Float[Tensor, "*batch d_out"],
]


@dataclass(frozen=True)
class LinearPart:
    """mean + (y - centre) map: the error that a ridge regression on the activation predicts."""

    map: Float[Tensor, "d_out d_out"]
    centre: Float[Tensor, " d_out"]
    mean: Float[Tensor, " d_out"]

    def __call__(
        self,
        x: Float[Tensor, "*batch d_in"],
        y: Float[Tensor, "*batch d_out"],
        error: Float[Tensor, "*batch d_out"],
    ) -> Float[Tensor, "*batch d_out"]:
        return self.mean.to(error) + (y - self.centre.to(y)) @ self.map.to(y)


@dataclass(frozen=True)
class Projection:
    """The error within the span of the orthonormal `basis`."""

    basis: Float[Tensor, "d_out some"]

    def __call__(
        self,
        x: Float[Tensor, "*batch d_in"],
        y: Float[Tensor, "*batch d_out"],
        error: Float[Tensor, "*batch d_out"],
    ) -> Float[Tensor, "*batch d_out"]:
        basis = self.basis.to(error)
        return error @ basis @ basis.mT


@dataclass(frozen=True)
class Remainder:
    """What another part leaves of the error."""

    part: Part

    def __call__(
        self,
        x: Float[Tensor, "*batch d_in"],
        y: Float[Tensor, "*batch d_out"],
        error: Float[Tensor, "*batch d_out"],
    ) -> Float[Tensor, "*batch d_out"]:
        return error - self.part(x, y, error)


@dataclass(frozen=True)
class DirectionClass:
    """A part of the error of each site, by hook.

    `energy` is by how much of its squared norm the error is smaller without it, at positions that it was not fitted on;
    `content` a hash of what it was fitted on.
    """

    division: str
    name: str
    parts: Mapping[str, Part]
    energy: float
    content: str

    def patches(self, variant: Variant, random: Variant) -> dict[str, tuple[str, Variant]]:
        """As `PlaceClass.patches`: the part is put back; it alone is left in; and a random error of its norm."""
        rest = {hook: Remainder(part) for hook, part in self.parts.items()}
        by_kind = {RESTORED: (variant, self.parts), ONLY: (variant, rest), RANDOM: (random, rest)}
        return {
            kind: (f"{self.division} {self.name} {kind} {self.content}", _restoring(base, parts))
            for kind, (base, parts) in by_kind.items()
        }


def _restoring(variant: Variant, parts: Mapping[str, Part]) -> Variant:
    return replace(variant, splices=tuple(replace(s, restored=parts[s.site_out.hook]) for s in variant.splices))


class Moments(EditedWatch[dict[str, Tensor]]):
    """Second moments of activations and errors where dictionaries are spliced in, by hook; a watch of a forked pass."""

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant)
        self.by_hook: dict[str, dict[str, Tensor]] = {}

    def measured(
        self,
        splice: Splice,
        x: Float[Tensor, "edited d_in"],
        y: Float[Tensor, "edited d_out"],
        new: Float[Tensor, "edited d_out"],
    ) -> dict[str, Tensor]:
        activation = y.double()
        # Of the dictionary's own error, of which `scale` is what is made of it.
        return moments_of(activation, (activation - new.double()) / (splice.scale or 1))

    def add(self, hook: str, measured: dict[str, Tensor]) -> None:
        before = self.by_hook.setdefault(hook, {name: torch.zeros_like(value) for name, value in measured.items()})
        for name, value in measured.items():
            before[name] += value

    @property
    def positions(self) -> int:
        """How many positions they are of."""
        return min((int(moments["count"]) for moments in self.by_hook.values()), default=0)

    def classes(self, divisions: tuple[str, ...], others: Moments) -> list[DirectionClass]:
        """The parts of the error, whose energy is that at `others`.

        Raises `UserError` where there are too few positions to fit them on.
        """
        out: list[DirectionClass] = []
        if DIRECTIONS in divisions:
            widest = max(len(moments["y"]) for moments in self.by_hook.values())
            if self.positions < 2 * widest:
                raise UserError(
                    f"--by direction fits a map of {widest} values on {self.positions:,} positions, and needs twice as "
                    f"many as values: ask more documents."
                )
            fitted = {hook: _linear(moments) for hook, moments in self.by_hook.items()}
            out.append(self._of(DIRECTIONS, LINEAR, fitted, others))
            out.append(self._of(DIRECTIONS, REST, {hook: Remainder(part) for hook, part in fitted.items()}, others))
        if COMPONENTS in divisions:
            bases = {hook: torch.linalg.eigh(moments["ee"])[1].flip(-1) for hook, moments in self.by_hook.items()}
            for count in LEADING:
                parts = {hook: Projection(basis[:, :count].float()) for hook, basis in bases.items()}
                out.append(self._of(COMPONENTS, f"first {count}", parts, others))
        return out

    def _of(self, division: str, name: str, parts: Mapping[str, Part], others: Moments) -> DirectionClass:
        energy = [_energy(part, others.by_hook[hook]) for hook, part in parts.items()]
        return DirectionClass(division, name, parts, float(np.mean(energy)), self._content)

    @functools.cached_property
    def _content(self) -> str:
        """A hash of what the parts are fitted on, which is whole by then."""
        digest = hashlib.sha256()
        for moments in self.by_hook.values():
            digest.update(moments["ye"].cpu().numpy().tobytes() + moments["ee"].cpu().numpy().tobytes())
        return digest.hexdigest()


def moments_of(y: Float64[Tensor, "positions d_out"], error: Float64[Tensor, "positions d_out"]) -> dict[str, Tensor]:
    sums = {"y": y.sum(0), "e": error.sum(0), "yy": y.mT @ y, "ye": y.mT @ error, "ee": error.mT @ error}
    return {**sums, "count": torch.tensor(float(len(y)), dtype=torch.float64)}


def _linear(moments: Mapping[str, Tensor]) -> LinearPart:
    """Ridge regression of the error on the activation, both centred."""
    n = moments["count"].to(moments["y"])
    centre, mean = moments["y"] / n, moments["e"] / n
    covariance, both = moments["yy"] / n - centre[:, None] * centre, moments["ye"] / n - centre[:, None] * mean
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(centre), dtype=centre.dtype, device=centre.device)
    return LinearPart(torch.linalg.solve(covariance + ridge, both).float(), centre.float(), mean.float())


def _energy(part: Part, moments: Mapping[str, Tensor]) -> float:
    """1 - |error - part|^2 / |error|^2, by the moments; nan where there is no error."""
    whole = float(moments["ee"].trace())
    if not whole:
        return float("nan")
    if isinstance(part, Remainder):
        return 1 - _energy(part.part, moments)  # which the two share out, though they are not orthogonal
    if isinstance(part, Projection):
        basis = part.basis.to(moments["ee"])
        return float((basis.mT @ moments["ee"] @ basis).trace()) / whole
    assert isinstance(part, LinearPart)
    n = moments["count"].to(moments["y"])
    slope, centre, mean = (value.to(moments["y"]) for value in (part.map, part.centre, part.mean))
    offset = mean - centre @ slope
    cross = (slope * moments["ye"]).sum() + offset @ moments["e"]
    own = (slope * (moments["yy"] @ slope)).sum() + 2 * offset @ (moments["y"] @ slope) + n * offset @ offset
    return float(2 * cross - own) / whole
