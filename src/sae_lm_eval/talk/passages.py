"""Texts with what the models predict at each token: a baseline's answers, or a text of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lm_eval.runtime import text_files
from sae_lm_eval.scoring.detokenize import pieces
from sae_lm_eval.talk.conversation import Answer, Exchange, Model
from sae_lm_eval.talk.token_categories import CategoryKl, described_tokens, tabulate
from sae_lm_eval.talk.token_kl import Place, Prediction, token_view

WINDOW = 1024  # tokens at most, so that logits of (window, vocabulary) fit beside any model that fits


@dataclass(frozen=True)
class Passage:
    """A text that baseline and variants read.

    `pieces` are the texts that `ids` add; the last `len(places)` of them are looked at, and those before are what
    they follow. `answers` are what was written after the prompt, the baseline's first; a text of the user's has none.
    """

    title: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    places: tuple[Place, ...]
    variants: tuple[str, ...]
    provenance: Mapping[str, Any]
    exchange: Exchange | None = None
    answer_pieces: tuple[tuple[str, ...], ...] = ()

    @property
    def shown(self) -> list[tuple[str, Place]]:
        """The tokens that are looked at, with their texts."""
        return list(zip(self.pieces[len(self.pieces) - len(self.places) :], self.places, strict=True))


def of_exchange(model: Model, exchange: Exchange) -> Passage:
    """The baseline's answer as all columns read it, after the baseline's own prompt."""
    baseline, *others = exchange.answers
    ids, start = [*baseline.prompt, *baseline.ids], len(baseline.prompt)
    return Passage(
        exchange.prompt,
        tuple(ids),
        tuple(pieces(model.decode, ids)),
        tuple(token_view(model.model, [answer.column for answer in others], ids, start)),
        tuple(answer.column.name for answer in others),
        exchange.provenance,
        exchange,
        tuple(tuple(_written(model, answer)) for answer in exchange.answers),
    )


def of_text(model: Model, path: str | Path, tokens: int) -> Iterator[Passage]:
    """The first `tokens` of a .txt, .jsonl or .parquet file, in windows that every model and dictionary can read."""
    prefix = model.tokens.prefix_token_id
    documents = text_files.read_documents(path, tokens=tokens)
    windows = model.tokens.windows(documents, length=min(model.context_size, WINDOW), tokens=tokens)
    columns, first = model.variant_columns, 1
    for ids in windows:
        last = first + len(ids) - 2
        yield Passage(
            f"{Path(path).name}, tokens {first:,} to {last:,}",
            tuple(ids[1:]),
            tuple(pieces(model.decode, ids, 1)),
            tuple(token_view(model.model, columns, ids, 1)),
            tuple(column.name for column in columns),
            model.provenance | {"prefix_token_id": prefix},
        )
        first = last + 1


def tables(passages: Sequence[Passage], special_ids: frozenset[int]) -> dict[str, list[CategoryKl]]:
    """For each variant, the categories of the tokens that were looked at in the passages that it read."""
    out = {}
    for name in dict.fromkeys(name for passage in passages for name in passage.variants):
        read = [passage for passage in passages if name in passage.variants]
        tokens = described_tokens([p.pieces for p in read], [p.ids for p in read], special_ids)
        kls = [_kls(passage, passage.variants.index(name)) for passage in read]
        out[name] = tabulate(tokens, kls)
    return out


def passage_record(passage: Passage, name: Callable[[int], str]) -> dict[str, Any]:
    """A passage as plain values, with all that it depends on: a line of jsonl; `name` gives the text of an id."""

    def prediction_record(p: Prediction) -> dict[str, Any]:
        return {"probability": p.probability, "top": [{"text": name(i), "id": i, "probability": q} for i, q in p.top]}

    return {
        "passage": passage.title,
        "tokens": [
            {
                "id": place.token,
                "text": piece,
                "baseline": prediction_record(place.baseline),
                "variants": [
                    {"variant": variant, "kl_nats": kl, **prediction_record(p)}
                    for variant, kl, p in zip(passage.variants, place.kl, place.variants, strict=True)
                ],
            }
            for piece, place in passage.shown
        ],
        "provenance": dict(passage.provenance),
    }


def _kls(passage: Passage, variant: int) -> list[float | None]:
    before = len(passage.pieces) - len(passage.places)
    return [None] * before + [place.kl[variant] for place in passage.places]


def _written(model: Model, answer: Answer) -> list[str]:
    return pieces(model.decode, [*answer.prompt, *answer.ids], len(answer.prompt))
