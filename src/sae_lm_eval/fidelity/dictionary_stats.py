"""What a variant's dictionaries read and made while it ran, summed by document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sae_lm_eval.dictionaries.stated import EARLY
from sae_lm_eval.splicing.splice import Context, Splice, Variant

COLUMNS = ("positions", "l0", "squared_error", "squares", "cosine", "norm_ratio")
# For the comparison with what a release states: norms of what is read and stood for, positions that are not among a
# text's first, and the elements that are active there.
COLUMNS += ("norm_in", "norm_out", "later", "l0_later")
ACTIVATIONS = 2**26  # of elements, held at a time
NOWHERE = np.iinfo(np.int64).max
SMALL = 1e-4  # norms below are divided by 1, as in sae_lens.evals


class Batch(NamedTuple):
    """Places counted in a batch, among its rows x positions, each once; then for every answer asked there, at which
    of the places, and of which document."""

    places: Tensor
    which: np.ndarray
    documents: np.ndarray


@dataclass
class Sums:
    """Of one dictionary: `columns` (documents, COLUMNS); `vectors` (documents, d_out), sums of what it stands for;
    `first` and `last` (categories, d_dictionary), the least and greatest number of a document where each fired."""

    columns: np.ndarray
    vectors: np.ndarray
    first: np.ndarray
    last: np.ndarray


@dataclass
class DictionarySums:
    """Watches the splices of a variant in a walk; see `walk.Watch`.

    `documents` has for each query the index of its document; `numbers` and `categories` have for each document its
    number in the whole text and the index of its category. Positions of `left_out` ids are not counted, nor those
    below a splice's first.

    Everything is taken in the dictionary's own space, to which the splice's activation maps lead.
    """

    variant: Variant
    numbers: Sequence[int]
    categories: Sequence[int]
    left_out: frozenset[int]
    documents: Sequence[int] = ()
    sums: list[Sums] = field(default_factory=list)
    _batches: dict[int, Batch] = field(default_factory=dict)  # by the first position that is counted
    _heard: Tensor | None = None  # of elements, as the dictionary that reconstructed last had them
    _pending: list[tuple[int, Batch, np.ndarray, Tensor, dict[int, np.ndarray]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n, kinds = len(self.numbers), 1 + max(self.categories, default=0)
        for splice in self.variant.splices:
            d = splice.dictionary
            self.sums.append(
                Sums(
                    np.zeros((n, len(COLUMNS))),
                    np.zeros((n, d.d_out)),
                    np.full((kinds, d.d_dictionary), NOWHERE),
                    np.full((kinds, d.d_dictionary), -1),
                )
            )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the scope, what elements do is heard where dictionaries reconstruct, and not computed again."""

        def hear(_module: nn.Module, _args: tuple, output: Tensor) -> None:
            self._heard = output

        with ExitStack() as scope:
            for splice in self.variant.splices:
                if splice.dictionary.elements is not None:
                    scope.callback(splice.dictionary.elements.register_forward_hook(hear).remove)
            yield

    def begin(self, context: Context, places: np.ndarray, which: np.ndarray, queries: np.ndarray) -> None:
        """Before a batch: which positions are asked for, and for every answer which of them, and the query."""
        at = torch.from_numpy(places).to(context.input_ids.device)
        ids, positions = (
            values.reshape(context.input_ids.shape).flatten()[at].cpu().numpy()
            for values in (context.input_ids, context.positions)
        )
        ordinary = ~np.isin(ids, list(self.left_out))
        self._batches, self._pending, self._heard = {}, [], None
        for first in {splice.first_position for splice in self.variant.splices}:
            counted = ordinary & (positions >= first)
            documents = np.asarray(self.documents, dtype=np.int64)[queries[counted[which]]]
            renumbered = np.cumsum(counted) - 1
            kept = which[counted[which]]
            self._batches[first] = Batch(torch.from_numpy(places[counted]), renumbered[kept], documents)

    def __call__(self, splice: Splice, x: Tensor, y: Tensor, new: Tensor | None, context: Context) -> None:
        """At a splice: raw `x` and `y` (rows, positions, width), and what took the place of `y`, if anything did."""
        batch, dictionary = self._batches[splice.first_position], splice.dictionary
        if not len(batch.places):
            return
        dtype, device = dictionary.dtype, dictionary.device
        if new is None or splice.mode != "reconstruction":
            new = splice.reconstruction(x, y, context)
        places = batch.places.to(device)
        y, new = (t.flatten(0, 1).to(device, dtype)[places] for t in (y, new))
        wanted = splice.map_out.there(y)
        made = wanted + (new - y)
        columns = torch.stack(
            [
                torch.ones(len(places), dtype=torch.float64, device=device),
                torch.zeros(len(places), dtype=torch.float64, device=device),
                (wanted - made).double().square().sum(-1),
                wanted.double().square().sum(-1),
                nn.functional.cosine_similarity(wanted, made, dim=-1).double(),
                (made.norm(dim=-1) / _divisor(wanted.norm(dim=-1))).double(),
                _norms(splice, x, places),
                wanted.double().norm(dim=-1),
                (context.positions.flatten().to(device)[places] >= EARLY).double(),
            ],
            dim=1,
        )
        fired: dict[int, np.ndarray] = {}
        l0, later = self._activations(splice, x, places, batch, fired), columns[:, -1]
        columns[:, COLUMNS.index("l0")] = l0
        columns = torch.cat([columns, (l0 * later)[:, None]], dim=1)
        number = next(i for i, own in enumerate(self.variant.splices) if own is splice)
        self._pending.append((number, batch, columns.cpu().numpy(), wanted, fired))

    def _activations(
        self, splice: Splice, x: Tensor, places: Tensor, batch: Batch, fired: dict[int, np.ndarray]
    ) -> Tensor:
        """L0 at each place; `fired` gets for each document a mask of the elements that fired in it."""
        dictionary = splice.dictionary
        heard, self._heard = self._heard, None
        z = splice.map_in.there(x.to(dictionary.device, dictionary.dtype))
        known = None  # (rows x positions, d_dictionary), where it need not be computed piece by piece
        if dictionary.sequential:
            known = dictionary.encode(z).flatten(0, 1)
        elif heard is not None and not heard.is_sparse and heard.shape[:2] == z.shape[:2]:
            known = heard.flatten(0, 1)
        z = z.flatten(0, 1)
        l0 = torch.zeros(len(places), dtype=torch.float64, device=z.device)
        step = max(1, ACTIVATIONS // dictionary.d_dictionary)
        for start in range(0, len(places), step):
            part = slice(start, start + step)
            active = (dictionary.encode(z[places[part]]) if known is None else known[places[part]]) != 0
            active = active.to_dense() if active.is_sparse else active
            l0[part] = active.sum(-1).double()
            here = (batch.which >= start) & (batch.which < start + step)
            for document in np.unique(batch.documents[here]):
                rows = torch.from_numpy(batch.which[here & (batch.documents == document)] - start).to(active.device)
                mask = active[rows].any(0).cpu().numpy()
                fired[document] = fired[document] | mask if document in fired else mask
        return l0

    def commit(self) -> None:
        """After a batch that went well: one that ran out of memory is run again in parts."""
        for number, batch, columns, wanted, fired in self._pending:
            sums = self.sums[number]
            np.add.at(sums.columns, batch.documents, columns[batch.which])
            for document, mask in fired.items():
                rows = torch.from_numpy(batch.which[batch.documents == document]).to(wanted.device)
                sums.vectors[document] += wanted[rows].double().sum(0).cpu().numpy()
                kind, which = self.categories[document], self.numbers[document]
                sums.first[kind, mask] = np.minimum(sums.first[kind, mask], which)
                sums.last[kind, mask] = np.maximum(sums.last[kind, mask], which)
        self._pending = []


def _norms(splice: Splice, x: Tensor, places: Tensor) -> Tensor:
    """Of what the dictionary reads, in its own space, at each place."""
    read = x.flatten(0, 1)[places.to(x.device)].to(splice.dictionary.device, splice.dictionary.dtype)
    return splice.map_in.there(read).double().norm(dim=-1)


def _divisor(norm: Tensor) -> Tensor:
    return torch.where(norm < SMALL, 1.0, norm)


class OfCategory(NamedTuple):
    """A dictionary's sums over a category's documents, of one process or of all; see `Sums`."""

    positions: float
    vector: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def and_(self, other: OfCategory) -> OfCategory:
        return OfCategory(
            self.positions + other.positions,
            self.vector + other.vector,
            np.minimum(self.first, other.first),
            np.maximum(self.last, other.last),
        )


def by_category(sums: Sums, categories: Sequence[int]) -> list[OfCategory]:
    kinds = np.asarray(categories)
    return [
        OfCategory(float(sums.columns[kinds == k, 0].sum()), sums.vectors[kinds == k].sum(0), first, last)
        for k, (first, last) in enumerate(zip(sums.first, sums.last, strict=True))
    ]


def records(
    sums: Sums, numbers: Sequence[int], categories: Sequence[int], whole: OfCategory, parts: Sequence[OfCategory]
) -> list[dict[str, float]]:
    """A document's sums as plain numbers that add up over documents: to those of the text with `_text` at the end,
    to those of its category with `_category`.

    `whole` and `parts` hold the sums of all processes. The squared deviation is from the mean there. A document
    is given the fraction of the dictionary that fired in it and in none before, and that which fired in no other.
    """
    table = {name: sums.columns[:, i] for i, name in enumerate(COLUMNS) if name != "squares"}
    squares, positions = sums.columns[:, COLUMNS.index("squares")], sums.columns[:, 0]
    for within in ("text", "category"):
        of = [whole if within == "text" else parts[kind] for kind in categories]
        mean = np.stack([part.vector / max(part.positions, 1) for part in of])
        deviation = squares - 2 * (sums.vectors * mean).sum(1) + positions * (mean**2).sum(1)
        starts = [part.first == number for part, number in zip(of, numbers, strict=True)]
        only = [start & (part.last == part.first) for part, start in zip(of, starts, strict=True)]
        table[f"squared_deviation_{within}"] = deviation
        table[f"fired_first_{within}"] = np.array([each.mean() for each in starts])
        table[f"fired_only_{within}"] = np.array([each.mean() for each in only])
    return [{name: values[i].item() for name, values in table.items()} for i in range(len(numbers))]
