"""What a variant's dictionaries read and put in its place in one batch, at the positions that count."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from sae_lm_eval.dictionaries.stated import EARLY
from sae_lm_eval.scoring.request import TargetIndex
from sae_lm_eval.splicing.special_tokens import spliced_positions
from sae_lm_eval.splicing.splice import Context, Splice, Variant

COLUMNS = ("positions", "l0", "squared_error", "squares", "cosine", "norm_ratio")
# For the comparison with what a release states: norms of what is read and of what is replaced, positions that are not
# among a text's first, and the latents that are active there.
COLUMNS += ("norm_in", "norm_out", "later", "l0_later")
ACTIVATIONS = 2**26  # of latents, held at a time
SMALL = 1e-4  # norms below are divided by 1, as in sae_lens.evals


class CountedPositions(NamedTuple):
    """The positions of a batch that count for dictionaries spliced in from the same position on.

    `positions` are indices among rows x length, each listed once. For every target that such a position predicts,
    `place` is the index of its position in `positions`, and `documents` that of its document.
    """

    positions: Int[Tensor, " counted"]
    place: Int[np.ndarray, " targets"]
    documents: Int[np.ndarray, " targets"]


@dataclass(frozen=True)
class SpliceRecord:
    """Of one splice: `columns`, those of `COLUMNS`; `replaced`, what the dictionary stands for; `fired`, for each
    document a mask of the latents that were not 0 in it.

    All in the dictionary's own space, to which the splice's activation maps lead.
    """

    counted: CountedPositions
    columns: Float64[np.ndarray, "counted columns"]
    replaced: Float[Tensor, "counted d_out"]
    fired: Mapping[int, Bool[np.ndarray, " latents"]]


def counted_positions(
    context: Context,
    targets: TargetIndex,
    documents: Int[np.ndarray, " targets"],
    excluded_ids: Collection[int],
    first: int,
) -> CountedPositions:
    """Positions that predict a target, hold none of `excluded_ids`, and are not below `first`.

    `documents` are the documents that the targets are of.
    """
    places = torch.from_numpy(targets.positions).to(context.input_ids.device)
    spliced = spliced_positions(context.input_ids, context.positions, excluded_ids, first)
    counts = spliced.flatten()[places].cpu().numpy()
    renumbered = np.cumsum(counts) - 1
    target_counts = counts[targets.place]
    return CountedPositions(
        torch.from_numpy(targets.positions[counts]), renumbered[targets.place[target_counts]], documents[target_counts]
    )


class BatchRecord:
    """Filled during one forward pass, in this order at each splice: the dictionary reconstructs, on the way of which
    `keep_latents` gets the activations of its latents; then the record is called with what passes the splice.

    `counted` holds the positions that count by the first position of a splice.
    """

    def __init__(self, variant: Variant, counted: Mapping[int, CountedPositions]):
        self.variant, self.counted = variant, counted
        self.splices: dict[int, SpliceRecord] = {}  # by the number of the splice in the variant
        self._latents: dict[int, Tensor] = {}

    @contextmanager
    def keeping_latents(self) -> Iterator[None]:
        """Inside the scope, activations of latents are kept where dictionaries reconstruct, and not computed again."""
        with ExitStack() as scope:
            for number, splice in enumerate(self.variant.splices):
                if splice.dictionary.latent_module is not None:
                    keep = partial(self.keep_latents, number)
                    scope.callback(splice.dictionary.latent_module.register_forward_hook(keep).remove)
            yield

    def keep_latents(self, number: int, _module: nn.Module, _args: tuple, output: Tensor) -> None:
        """Of the splice of that number: `output` (rows, positions, d_dictionary)."""
        self._latents[number] = output

    def __call__(
        self,
        splice: Splice,
        x: Float[Tensor, "rows positions d_in"],
        y: Float[Tensor, "rows positions d_out"],
        new: Float[Tensor, "rows positions d_out"] | None,
        context: Context,
    ) -> None:
        """At a splice: raw `x` and `y`, and what took the place of `y`, if anything did."""
        counted, dictionary = self.counted[splice.first_position], splice.dictionary
        if not len(counted.positions):
            return
        dtype, device = dictionary.dtype, dictionary.device
        if new is None or splice.mode != "reconstruction":
            new = splice.reconstruction(x, y, context)
        positions = counted.positions.to(device)
        y, new = (t.flatten(0, 1).to(device, dtype)[positions] for t in (y, new))
        replaced = splice.map_out.there(y)
        reconstructed = replaced + (new - y)
        number = self.variant.number_of(splice)
        l0, fired = self._activations(number, splice, x, counted, splice.edited_positions(context))
        later = (context.positions.flatten().to(device)[positions] >= EARLY).double()
        columns = torch.stack(
            [
                torch.ones(len(positions), dtype=torch.float64, device=device),
                l0,
                (replaced - reconstructed).double().square().sum(-1),
                replaced.double().square().sum(-1),
                nn.functional.cosine_similarity(replaced, reconstructed, dim=-1).double(),
                (reconstructed.norm(dim=-1) / _divisor(replaced.norm(dim=-1))).double(),
                _norms(splice, x, positions),
                replaced.double().norm(dim=-1),
                later,
                l0 * later,
            ],
            dim=1,
        )
        self.splices[number] = SpliceRecord(counted, columns.cpu().numpy(), replaced, fired)

    def _activations(
        self,
        number: int,
        splice: Splice,
        x: Float[Tensor, "rows positions d_in"],
        counted: CountedPositions,
        edited: Bool[Tensor, "rows positions"] | None,
    ) -> tuple[Float64[Tensor, " counted"], dict[int, Bool[np.ndarray, " latents"]]]:
        """L0 at each counted position, and for each document a mask of the latents that fired in it."""
        dictionary, kept = splice.dictionary, self._latents.pop(number, None)
        z = splice.dictionary_input(x)
        latents = None  # (rows x positions, d_dictionary), where they need not be computed piece by piece
        if dictionary.sequential and dictionary.encode is not None:
            latents = dictionary.encode(z).flatten(0, 1)
        elif kept is not None and not kept.is_sparse and kept.shape[:2] == z.shape[:2]:
            latents = kept.flatten(0, 1)
        z, places = z.flatten(0, 1), counted.positions.to(z.device)
        l0 = torch.zeros(len(places), dtype=torch.float64, device=z.device)
        fired: dict[int, np.ndarray] = {}
        if dictionary.encode is None or dictionary.d_dictionary is None:
            return l0 * math.nan, dict.fromkeys(np.unique(counted.documents).tolist(), np.zeros(0, dtype=bool))
        step = max(1, ACTIVATIONS // dictionary.d_dictionary)
        for start in range(0, len(places), step):
            part = slice(start, start + step)
            here = places[part]
            where = None if edited is None else edited.flatten()[here.to(edited.device)]
            active = (splice.encoded(z[here], where) if latents is None else latents[here]) != 0
            active = active.to_dense() if active.is_sparse else active
            l0[part] = active.sum(-1).double()
            in_part = (counted.place >= start) & (counted.place < start + step)
            for document in np.unique(counted.documents[in_part]).tolist():
                of_document = counted.place[in_part & (counted.documents == document)] - start
                mask = active[torch.from_numpy(of_document).to(active.device)].any(0).cpu().numpy()
                fired[document] = fired[document] | mask if document in fired else mask
        return l0, fired


def _norms(
    splice: Splice, x: Float[Tensor, "rows positions d_in"], positions: Int[Tensor, " counted"]
) -> Float64[Tensor, " counted"]:
    """Of what the dictionary reads, in its own space, at each position."""
    return splice.dictionary_input(x.flatten(0, 1)[positions.to(x.device)]).double().norm(dim=-1)


def _divisor(norm: Float[Tensor, " counted"]) -> Float[Tensor, " counted"]:
    return torch.where(norm < SMALL, 1.0, norm)
