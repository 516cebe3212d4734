"""Which latents of a variant's dictionaries the margins of questions depend on: gradient times activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm_eval.attribution.gradients import SiteGradient, TextGradient
from sae_lm_eval.dictionaries.latent_edits import LatentEdits, LatentName, edited
from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.splice import Splice, Variant

EXAMPLES = 5  # texts in which a latent is most active
ACTIVATIONS = 2**25  # of latents, held at a time


@dataclass(frozen=True)
class AttributedLatent:
    """A latent of the splice of that number, and what it is worth (nats)."""

    splice: int
    latent: int
    attributed: float


@dataclass(frozen=True)
class ActivatingToken:
    """Where a latent is most active in a document's text: `ids[position]`."""

    document: int
    ids: Sequence[int]
    position: int
    activation: float


def check_latents(variant: Variant) -> None:
    """Raise `UserError` where a dictionary has no latents whose activations its reconstruction is made of."""
    for splice in variant.splices:
        dictionary = splice.dictionary
        if dictionary.cross_layer is not None:
            raise UserError(
                f"{dictionary.name} is of a cross-layer transcoder, whose latents write at several layers: nothing is "
                f"attributed to them."
            )
        if dictionary.encode is None or dictionary.decode is None or dictionary.d_dictionary is None:
            raise UserError(
                f"{dictionary.name} has no latents to attribute anything to: it needs an encode and a decode."
            )
        if dictionary.sequential:
            raise UserError(f"{dictionary.name} looks at several positions: nothing is attributed to its latents.")


def ablated(variant: Variant, number: int, latent: int) -> Variant:
    """The variant with one latent of the splice of that number at 0 wherever it is spliced in.

    Its own edits of latents, if it has any, hold everywhere: `Inquiry.check_edits` refuses others.
    """
    splices = list(variant.splices)
    splice = splices[number]
    splices[number] = replace(
        splice, dictionary=edited(splice.dictionary, LatentEdits(ablate=(LatentName(None, latent),)))
    )
    return replace(variant, splices=tuple(splices))


class LatentAttributions:
    """Takes the texts of `gradients.margin_gradients`, and adds up what each latent and the error are worth.

    Of a document that is a * d m / d a, summed over positions, where a is the latent's activation and m the margin: to
    first order, what the margin (nats) would lose without it. The error's is what the margin would gain with it put
    back. A part of the tasks has the mean of its documents, weighted by what each lost of its margin: those that
    gained count with the opposite sign.

    Args:
        variant: what the gradients are of.
        lost: what each document lost (nats), by its number.
        parts: the documents of each part of the tasks.
    """

    def __init__(self, variant: Variant, lost: Mapping[int, float], parts: Mapping[str, Sequence[int]]) -> None:
        self.variant, self.lost = variant, lost
        self.parts = {name: frozenset(own) for name, own in parts.items()}
        self._parts_of = {
            document: [at for at, own in enumerate(self.parts.values()) if document in own] for document in lost
        }
        widths = [int(splice.dictionary.d_dictionary or 0) for splice in variant.splices]
        self._sums = [np.zeros((len(self.parts), width)) for width in widths]
        self._errors = np.zeros((len(self.parts), len(widths)))
        self.active = [np.zeros(width, dtype=np.int64) for width in widths]  # in how many documents
        self._largest = [_Largest(width) for width in widths]
        self._texts: dict[int, Sequence[int]] = {}

    def __call__(self, text: TextGradient) -> None:
        for number, (splice, site) in enumerate(zip(self.variant.splices, text.sites, strict=True)):
            counted = site.gradient.abs().amax(-1) > 0
            attribution = _attributed(splice, site, counted)
            parts, weight = self._parts_of[text.document], self.lost[text.document]
            self._sums[number][parts] += weight * attribution.attributed.double().cpu().numpy()
            self._errors[parts, number] += weight * float(site.error_attribution[counted].double().sum())
            if "right" in text.answers:  # once a document
                self._texts[text.document] = text.ids
                activations = attribution.largest.cpu().numpy()
                self.active[number] += activations != 0
                self._largest[number].add(text.document, activations, attribution.positions.cpu().numpy())

    def _weight(self, part: str) -> float:
        return float(sum(abs(self.lost[document]) for document in self.parts[part]))

    def top(self, part: str, count: int) -> list[AttributedLatent]:
        """The latents that are worth most in a part of the tasks, either way; those worth nothing are left out."""
        at = [*self.parts].index(part)
        weight, out = self._weight(part), []
        for number, sums in enumerate(self._sums):
            largest = np.argsort(-np.abs(sums[at]), kind="stable")[:count]
            out += [
                AttributedLatent(number, int(latent), float(sums[at, latent]) / weight)
                for latent in largest
                if sums[at, latent]
            ]
        return sorted(out, key=lambda candidate: -abs(candidate.attributed))[:count]

    def attribution(self, part: str, number: int, latent: int) -> float:
        """What one latent is worth in a part of the tasks (nats)."""
        return float(self._sums[number][[*self.parts].index(part), latent]) / self._weight(part)

    def error_attribution(self, part: str) -> float:
        """What the errors of all splices are worth together (nats)."""
        return float(self._errors[[*self.parts].index(part)].sum()) / self._weight(part)

    def examples(self, number: int, latent: int) -> list[ActivatingToken]:
        """Where a latent is most active, once a document, the largest activation first."""
        return [
            ActivatingToken(document, self._texts[document], position, activation)
            for document, position, activation in self._largest[number].examples(latent)
        ]


@dataclass(frozen=True)
class _TextAttribution:
    attributed: Float[Tensor, " latents"]
    largest: Float[Tensor, " latents"]
    positions: Int[Tensor, " latents"]


def _attributed(splice: Splice, site: SiteGradient, counted: Tensor) -> _TextAttribution:
    """Summed over the positions that are counted; the activation that is largest by its absolute value, and where."""
    dictionary = splice.dictionary
    assert dictionary.encode is not None, "check_latents looks for it"
    assert dictionary.decode is not None, "check_latents looks for it"
    width = int(dictionary.d_dictionary or 0)
    z, gradient = splice.dictionary_input(site.read[counted.to(site.read.device)]), site.gradient[counted]
    attributed = torch.zeros(width, dtype=torch.float32, device=z.device)
    largest, places = torch.zeros_like(attributed), torch.zeros(width, dtype=torch.long, device=z.device)
    step = max(1, ACTIVATIONS // max(1, width))
    for start in range(0, len(z), step):
        with torch.no_grad():
            latents = dictionary.encode(z[start : start + step])
        latents = (latents.to_dense() if latents.is_sparse else latents).detach().requires_grad_()
        with torch.enable_grad():  # right behind its encode: some keep what they normalised by
            written = dictionary.decode(latents)
        (slope,) = torch.autograd.grad(written, latents, gradient[start : start + step].to(written))
        attributed += (latents.detach() * slope).float().sum(0)
        top = latents.detach().float().abs().max(0)
        signed = latents.detach().float().gather(0, top.indices[None])[0]
        more = top.values > largest.abs()
        largest, places = torch.where(more, signed, largest), torch.where(more, top.indices + start, places)
    positions = torch.nonzero(counted)[:, 0].to(places.device)
    return _TextAttribution(attributed, largest, positions[places] if len(positions) else places)


class _Largest:
    """The `EXAMPLES` largest activations of each latent, each of another document."""

    def __init__(self, width: int) -> None:
        self.values = np.zeros((EXAMPLES, width), dtype=np.float32)
        self.documents = np.full((EXAMPLES, width), -1, dtype=np.int64)
        self.positions = np.zeros((EXAMPLES, width), dtype=np.int64)

    def add(self, document: int, activations: np.ndarray, positions: np.ndarray) -> None:
        least = np.abs(self.values).argmin(0)
        latents = np.flatnonzero(np.abs(activations) > np.abs(self.values).min(0))
        at = least[latents], latents
        self.values[at], self.documents[at] = activations[latents], document
        self.positions[at] = positions[latents]

    def examples(self, latent: int) -> list[tuple[int, int, float]]:
        order = np.argsort(-np.abs(self.values[:, latent]), kind="stable")
        columns = (self.documents[order, latent], self.positions[order, latent], self.values[order, latent])
        return [
            (int(document), int(position), float(value))
            for document, position, value in zip(*columns, strict=True)
            if document >= 0
        ]
