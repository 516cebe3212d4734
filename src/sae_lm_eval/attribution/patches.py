"""A variant with the error of a class of places put back, or left in there alone; scored in the same forked passes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm_eval.attribution.classes import NORMS, NORMS_OF, SITES, VARIANTS_AT_ONCE, Labels
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring.answers import portions
from sae_lm_eval.scoring.request import Query, ScoreRequest, TargetIndex, Watch
from sae_lm_eval.scoring.shared_answers import SharedAnswers
from sae_lm_eval.scoring.spliced_model import SplicedModel
from sae_lm_eval.splicing.attach import SpliceWatch
from sae_lm_eval.splicing.places import Places, error_norm
from sae_lm_eval.splicing.special_tokens import spliced_positions
from sae_lm_eval.splicing.splice import Context, Splice, Variant

RESTORED, ONLY, RANDOM = "restored", "only", "random"


@dataclass(frozen=True)
class PlaceClass:
    """A class of a division, by where its error is alone and where it is put back."""

    division: str
    name: str
    inside: Places
    outside: Places

    def patches(self, variant: Variant, random: Variant) -> dict[str, tuple[str, Variant]]:
        """The error put back here; left in here alone; and that of `random`, of the same norm, here alone.

        With a key, equal for those that compute the same.
        """
        by_kind = {RESTORED: (variant, self.outside), ONLY: (variant, self.inside), RANDOM: (random, self.inside)}
        return {kind: (key_of(kind, places), replace(base, places=places)) for kind, (base, places) in by_kind.items()}


def classes_of(
    labels: Labels, variant: Variant, norms: Mapping[str, Sequence[float]] | None = None
) -> list[PlaceClass]:
    """The classes of all divisions that some position is in; by `norms`, edges by hook, and by site where asked for."""
    out = []
    for number, division in enumerate(labels.divisions):
        for index, name in enumerate(division.classes):
            own = labels.of_class(number, index)
            if own:
                rest = frozenset(labels.seen) - own
                out.append(PlaceClass(division.name, name, Places(labels=own), Places(labels=rest)))
    return [*out, *(_quantiles(norms) if norms else []), *_sites(variant)]


def _quantiles(edges: Mapping[str, Sequence[float]]) -> list[PlaceClass]:
    """Classes between `edges` by hook; a part that can hold no norm at any hook is one with the part below it."""
    bounds = {hook: [0.0, *norms, float("inf")] for hook, norms in edges.items()}
    parts = len(next(iter(edges.values()))) + 1
    starts = [at for at in range(parts) if not at or any(norms[at] < norms[at + 1] for norms in bounds.values())]
    out = []
    for start, end in zip(starts, [*starts[1:], parts], strict=True):
        inside = Places(norms={hook: (norms[start], norms[end]) for hook, norms in bounds.items()})
        quantile = f"quantile {start + 1}" if end == start + 1 else f"quantiles {start + 1} to {end}"
        out.append(PlaceClass(NORMS, f"{quantile} of {parts}", inside, replace(inside, outside=True)))
    return out


def _sites(variant: Variant) -> list[PlaceClass]:
    """Each site of several."""
    hooks = [splice.site_out.hook for splice in variant.in_order()]
    if len(hooks) < 2:
        return []
    return [
        PlaceClass(SITES, hook, Places(hooks=frozenset({hook})), Places(hooks=frozenset(hooks) - {hook}))
        for hook in hooks
    ]


def key_of(kind: str, places: Places) -> str:
    """Equal for patches of one variant that compute the same."""
    mode = "random" if kind == RANDOM else "reconstruction"
    plain = {
        "labels": None if places.labels is None else sorted(places.labels),
        "norms": None if places.norms is None else {hook: list(bounds) for hook, bounds in places.norms.items()},
        "hooks": None if places.hooks is None else sorted(places.hooks),
        "outside": places.outside,
    }
    return json.dumps([mode, plain], sort_keys=True)


def spread(queries: Any, count: int) -> Any:
    """At most so many of a sequence, evenly from its beginning to its end."""
    return queries[:: max(1, -(-len(queries) // count))]


class Patched:
    """Scores queries by the baseline, a variant, and others of it.

    Args:
        spliced: the variant, in a group with its baseline.
        meaning: what labels mean, as text: answers are kept under it too.
        journal: keeps answers.
        tell: is told how many queries of how many have been answered by how many of the passes.
    """

    def __init__(
        self,
        spliced: SplicedModel,
        meaning: str,
        journal: Journal,
        tell: Callable[[int, int], object] = lambda *_: None,
    ) -> None:
        self.spliced, self.meaning, self.journal, self.tell = spliced, meaning, journal, tell
        self._scorer = spliced.scorer([spliced.variant])

    def score(
        self, variants: Mapping[str, Variant], queries: Sequence[Query], tasks: Sequence[str]
    ) -> dict[str, Float[np.ndarray, "queries 3"]]:
        """For each variant by key, and the baseline under "baseline", log-probability, greedy and KL of each query."""
        return {key: answers for some in self.score_some(variants, queries, tasks) for key, answers in some.items()}

    def score_some(
        self, variants: Mapping[str, Variant], queries: Sequence[Query], tasks: Sequence[str]
    ) -> Iterator[dict[str, Float[np.ndarray, "queries 3"]]]:
        """What `score` gives, of the baseline and `VARIANTS_AT_ONCE` variants at a time."""
        keys, done = list(variants), 0
        with self.spliced.evaluation(), self.spliced.loaded.autocast():
            identity = self.spliced.identity()
            for start in range(0, len(keys), VARIANTS_AT_ONCE):
                some = keys[start : start + VARIANTS_AT_ONCE]
                scorer = self.spliced.scorer([variants[key] for key in some], self._scorer.layout)
                shared = SharedAnswers(scorer, self.journal, [identity, _digest(self.meaning), *map(_digest, some)])
                table = np.full((len(queries), 1 + len(some), 3), np.nan)
                for numbers in portions(queries, tasks):

                    def deliver(at: int, answer: np.ndarray, table: Any = table, numbers: Any = numbers) -> None:
                        nonlocal done
                        table[numbers[at]] = answer
                        done += 1
                        self.tell(done, len(queries) * -(-len(keys) // VARIANTS_AT_ONCE))

                    shared.answers([queries[number] for number in numbers], deliver)
                yield {"baseline": table[:, 0], **{key: table[:, 1 + at] for at, key in enumerate(some)}}

    def norm_edges(self, queries: Sequence[Query], parts: int) -> dict[str, list[float]]:
        """By hook the quantiles of the error's norm that divide the positions of some queries into equal parts.

        A quantile of 0 becomes the least number above it, so that positions without an error are a part.
        """
        watch = _Norms(self.spliced.variant)
        self.watched(spread(queries, NORMS_OF), watch)
        levels = [part / parts for part in range(1, parts)]
        least = float(np.finfo(np.float32).tiny)
        return {
            hook: np.maximum(np.quantile(np.concatenate(norms), levels), least).tolist()
            for hook, norms in watch.by_hook.items()
        }

    def watched(self, queries: Sequence[Query], watch: Watch) -> None:
        """Let a watch see what passes the variant's splices while queries are read."""
        with self.spliced.evaluation(), self.spliced.loaded.autocast():
            self._scorer.score(ScoreRequest(queries, measures=(), greedy=False, watch=watch), lambda _scores: None)


Measured = TypeVar("Measured")


class EditedWatch(Generic[Measured]):
    """Measures what stands where dictionaries are spliced in; see `scoring.request.Watch`. A batch counts once it went
    well.
    """

    def __init__(self, variant: Variant) -> None:
        self.special = variant.special_ids

    def measured(
        self,
        splice: Splice,
        x: Float[Tensor, "edited d_in"],
        y: Float[Tensor, "edited d_out"],
        new: Float[Tensor, "edited d_out"],
    ) -> Measured:
        """Of what is read in a batch, of the activations, and of what takes their place."""
        raise NotImplementedError

    def add(self, hook: str, measured: Measured) -> None:
        raise NotImplementedError

    @contextmanager
    def batch(
        self, context: Context, targets: TargetIndex, queries: Int[np.ndarray, " targets"]
    ) -> Iterator[SpliceWatch]:
        by_hook: dict[str, Measured] = {}

        def record(splice: Splice, x: Tensor, y: Tensor, new: Tensor | None, context: Context) -> None:
            assert new is not None
            first = splice.first_position
            counted = spliced_positions(context.input_ids, context.positions, self.special, first).to(y.device)
            if context.real is not None:  # padding is spliced too, and read by nobody
                counted = counted & context.real.to(y.device)
            by_hook[splice.site_out.hook] = self.measured(splice, x[counted.to(x.device)], y[counted], new[counted])

        yield record
        for hook, measured in by_hook.items():
            self.add(hook, measured)


class _Norms(EditedWatch[np.ndarray]):
    """Collects the norm of the error, by hook."""

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant)
        self.by_hook: dict[str, list[np.ndarray]] = {splice.site_out.hook: [] for splice in variant.splices}

    def measured(
        self,
        splice: Splice,
        x: Float[Tensor, "edited d_in"],
        y: Float[Tensor, "edited d_out"],
        new: Float[Tensor, "edited d_out"],
    ) -> np.ndarray:
        return error_norm(y, new).cpu().numpy()

    def add(self, hook: str, measured: np.ndarray) -> None:
        self.by_hook[hook].append(measured)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
