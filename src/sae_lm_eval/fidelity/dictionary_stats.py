"""What a variant's dictionaries read and put in its place while it ran, summed by document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int

from sae_lm_eval.fidelity.batch_record import COLUMNS, BatchRecord, SpliceRecord, counted_positions
from sae_lm_eval.scoring.request import TargetIndex
from sae_lm_eval.splicing.splice import Context, Variant

NOWHERE = np.iinfo(np.int64).max
COUNTED = (
    "l0",
    "l0_later",
    *(f"fired_{which}_{within}" for within in ("text", "category") for which in ("first", "only")),
)


@dataclass
class DictionarySums:
    """Of one dictionary: `columns`, those of `COLUMNS`; `vectors`, sums of what it stands for; `first` and `last`, the
    least and greatest number of a document where each latent fired."""

    columns: Float64[np.ndarray, "documents columns"]
    vectors: Float64[np.ndarray, "documents d_out"]
    first: Int[np.ndarray, "categories latents"]
    last: Int[np.ndarray, "categories latents"]

    def add(self, record: SpliceRecord, numbers: Sequence[int], categories: Sequence[int]) -> None:
        """Add one batch; `numbers` and `categories` are as `DictionaryStatistics` has them."""
        counted = record.counted
        np.add.at(self.columns, counted.documents, record.columns[counted.place])
        for document, mask in record.fired.items():
            places = torch.from_numpy(counted.place[counted.documents == document]).to(record.replaced.device)
            self.vectors[document] += record.replaced[places].double().sum(0).cpu().numpy()
            category, number = categories[document], numbers[document]
            self.first[category, mask] = np.minimum(self.first[category, mask], number)
            self.last[category, mask] = np.maximum(self.last[category, mask], number)


@dataclass
class DictionaryStatistics:
    """Watches the splices of a variant while it is scored; see `scoring.request.Watch`.

    `documents` has for each query the index of its document; `numbers` and `categories` have for each document its
    number in the whole text and the index of its category. Positions of `excluded_ids` do not count, nor those
    below a splice's first.
    """

    variant: Variant
    numbers: Sequence[int]
    categories: Sequence[int]
    excluded_ids: frozenset[int]
    documents: Sequence[int] = ()
    sums: list[DictionarySums] = field(default_factory=list)

    def __post_init__(self) -> None:
        n, categories = len(self.numbers), 1 + max(self.categories, default=0)
        for splice in self.variant.splices:
            d = splice.dictionary
            self.sums.append(
                DictionarySums(
                    np.zeros((n, len(COLUMNS))),
                    np.zeros((n, d.widths[1])),
                    np.full((categories, d.d_dictionary or 0), NOWHERE),
                    np.full((categories, d.d_dictionary or 0), -1),
                )
            )

    @contextmanager
    def batch(
        self, context: Context, targets: TargetIndex, queries: Int[np.ndarray, " targets"]
    ) -> Iterator[BatchRecord]:
        """A record of one batch, which is added to the sums once the batch went well.

        A pass for which memory does not suffice leaves the scope by an exception, and its record is dropped: the same
        rows come again in smaller batches, and must not count twice.
        """
        documents = np.asarray(self.documents, dtype=np.int64)[queries]
        firsts = {splice.first_position for splice in self.variant.splices}
        counted = {first: counted_positions(context, targets, documents, self.excluded_ids, first) for first in firsts}
        record = BatchRecord(self.variant, counted)
        with record.keeping_latents():
            yield record
        for number, of_splice in record.splices.items():
            self.sums[number].add(of_splice, self.numbers, self.categories)


class CategorySums(NamedTuple):
    """A dictionary's sums over a category's documents, of one process or of all; see `DictionarySums`."""

    positions: float
    vector: Float64[np.ndarray, " d_out"]
    first: Int[np.ndarray, " latents"]
    last: Int[np.ndarray, " latents"]

    def plus(self, other: CategorySums) -> CategorySums:
        return CategorySums(
            self.positions + other.positions,
            self.vector + other.vector,
            np.minimum(self.first, other.first),
            np.maximum(self.last, other.last),
        )


def by_category(sums: DictionarySums, categories: Sequence[int]) -> list[CategorySums]:
    own = np.asarray(categories)
    return [
        CategorySums(float(sums.columns[own == k, 0].sum()), sums.vectors[own == k].sum(0), first, last)
        for k, (first, last) in enumerate(zip(sums.first, sums.last, strict=True))
    ]


def records(
    sums: DictionarySums,
    numbers: Sequence[int],
    categories: Sequence[int],
    whole: CategorySums,
    parts: Sequence[CategorySums],
) -> list[dict[str, float | None]]:
    """A document's sums as plain numbers that add up over documents: to those of the text with `_text` at the end,
    to those of its category with `_category`.

    `whole` and `parts` hold the sums of all processes. The squared deviation is from the mean there. A document
    is given the fraction of the dictionary that fired in it and in none before, and that which fired in no other.
    What is counted of latents is None where there are none.
    """
    table = {name: sums.columns[:, i] for i, name in enumerate(COLUMNS) if name != "squares"}
    squares, positions = sums.columns[:, COLUMNS.index("squares")], sums.columns[:, 0]
    for within in ("text", "category"):
        around = [whole if within == "text" else parts[category] for category in categories]
        mean = np.stack([part.vector / max(part.positions, 1) for part in around])
        deviation = squares - 2 * (sums.vectors * mean).sum(1) + positions * (mean**2).sum(1)
        starts = [part.first == number for part, number in zip(around, numbers, strict=True)]
        only = [start & (part.last == part.first) for part, start in zip(around, starts, strict=True)]
        table[f"squared_deviation_{within}"] = deviation
        if whole.first.size:
            table[f"fired_first_{within}"] = np.array([each.mean() for each in starts])
            table[f"fired_only_{within}"] = np.array([each.mean() for each in only])
    out = [{name: values[i].item() for name, values in table.items()} for i in range(len(numbers))]
    return out if whole.first.size else [{**record, **dict.fromkeys(COUNTED)} for record in out]
