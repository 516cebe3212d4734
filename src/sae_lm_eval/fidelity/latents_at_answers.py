"""Which latents of a variant's dictionaries are active at the positions that predict an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm_eval.fidelity.batch_record import counted_positions
from sae_lm_eval.scoring.request import Query, ScoreRequest, TargetIndex
from sae_lm_eval.scoring.spliced_model import SplicedModel
from sae_lm_eval.splicing.splice import Context, Splice, Variant


@dataclass
class ActiveLatents:
    """Of one query and one splice: how many positions were looked at, how many latents were active there in all, and
    the largest activation of each that was active at one of them."""

    positions: int = 0
    active: int = 0
    largest: dict[int, float] = field(default_factory=dict)

    @property
    def l0(self) -> float | None:
        """Active latents a position; None where the dictionary is spliced in at none of them."""
        return self.active / self.positions if self.positions else None

    def add(self, activations: Float[np.ndarray, "positions latents"]) -> None:
        self.positions += len(activations)
        self.active += int(np.count_nonzero(activations))
        for latent in np.flatnonzero(activations.any(0)).tolist():
            here = activations[:, latent]
            largest = float(here[np.abs(here).argmax()])
            self.largest[latent] = max(self.largest.get(latent, largest), largest, key=abs)


# By number of the query and of the splice in the variant.
ByQuery = dict[tuple[int, int], ActiveLatents]


@dataclass
class LatentsAtTargets:
    """Watches the splices of a variant while it is scored; see `scoring.request.Watch`."""

    variant: Variant
    by_query: ByQuery = field(default_factory=dict)

    @contextmanager
    def batch(
        self, context: Context, targets: TargetIndex, queries: Int[np.ndarray, " targets"]
    ) -> Iterator[_BatchLatents]:
        """The batch counts once it went well."""
        seen = _BatchLatents(self.variant, targets, queries)
        yield seen
        for key, activations in seen.activations.items():
            self.by_query.setdefault(key, ActiveLatents()).add(activations)


class _BatchLatents:
    def __init__(self, variant: Variant, targets: TargetIndex, queries: Int[np.ndarray, " targets"]):
        self.variant, self.targets, self.queries = variant, targets, queries
        self.activations: dict[tuple[int, int], np.ndarray] = {}

    def __call__(
        self,
        splice: Splice,
        x: Float[Tensor, "rows positions d_in"],
        y: Float[Tensor, "rows positions d_out"],
        new: Float[Tensor, "rows positions d_out"] | None,
        context: Context,
    ) -> None:
        dictionary = splice.dictionary
        if dictionary.encode is None:
            return
        counted = counted_positions(
            context, self.targets, self.queries, self.variant.special_ids, splice.first_position
        )
        z = splice.dictionary_input(x)
        places = counted.positions.to(z.device)
        if dictionary.sequential:  # it looks at the positions before as well
            latents = dictionary.encode(z).flatten(0, 1)[places]
        else:
            edited = splice.edited_positions(context)
            where = None if edited is None else edited.flatten()[places.to(edited.device)]
            latents = splice.encoded(z.flatten(0, 1)[places], where)
        values = (latents.to_dense() if latents.is_sparse else latents).detach().float().cpu().numpy()
        number = self.variant.number_of(splice)
        for query in np.unique(counted.documents).tolist():
            self.activations[query, number] = values[counted.place[counted.documents == query]]


@torch.no_grad()
def latents_at_answers(model: SplicedModel, queries: Sequence[Query]) -> ByQuery:
    """What is active where the variant predicts the targets of each query.

    Positions at which a dictionary is not spliced in do not count. Raises `ValueError` where the model cannot be scored
    in shared passes.
    """
    watch = LatentsAtTargets(model.variant)
    scorer = model.scorer([model.variant])
    with model.loaded.autocast():
        request = ScoreRequest(queries, measures=(), greedy=False, watch=watch)
        scorer.score(request, lambda _scored: None)
    return watch.by_query
