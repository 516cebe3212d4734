"""The latents that fire most unusually at the answers of the documents that lose most, with their pages."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_lm_eval.errors import UserError
from sae_lm_eval.report.formatting import fixed_decimals, is_number, significant
from sae_lm_eval.results.documents import KEY, document_table
from sae_lm_eval.results.results import Results

SITE = "https://www.neuronpedia.org"
PAGE = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# (task, doc_id)
Place = tuple[str, int]


@dataclass(frozen=True)
class Latent:
    """`name` is its number, behind the site where a variant has several dictionaries; `link` is its page, if any."""

    name: str
    detail: str
    link: str | None


@dataclass(frozen=True)
class Unusual:
    """Of a document and variant: `sentence` is what all the latents share."""

    variant: str
    sentence: str
    latents: tuple[Latent, ...]


def unusual_latents(runs: Mapping[str, Results], places: Collection[Place]) -> dict[tuple[str, Place], Unusual]:
    """By variant and document, as far as the runs' tables of documents say. Damaged tables say nothing."""
    by_place = {}
    for variant, run in runs.items():
        try:
            documents: Any = document_table(run, [*KEY, "l0", "latents", "others"])
        except UserError:
            continue  # the comparison has told of it
        if documents is None:
            continue
        documents = documents.dropna(subset=["latents", "others"])
        for row in documents.to_dict("records"):
            place = (str(row["task"]), int(row["doc_id"]))
            row["latents"] = [latent for latent in row["latents"] if latent is not None and None not in latent.values()]
            if place in places and row["latents"]:
                by_place[variant, place] = _unusual(variant, run, row)
    return by_place


def _unusual(variant: str, run: Results, row: Mapping[str, Any]) -> Unusual:
    splices = run.provenance.get("splices") or []
    l0 = (
        f" {fixed_decimals(row['l0'])} latents are active a position of the right answer."
        if is_number(row["l0"])
        else ""
    )
    sentence = f"Latents that are as active in the fewest of {int(row['others'])} other documents.{l0}"
    return Unusual(variant, sentence, tuple(_latent(latent, splices) for latent in row["latents"]))


def _latent(latent: Mapping[str, float], splices: Sequence[Mapping[str, object]]) -> Latent:
    splice = splices[int(latent["splice"])] if 0 <= latent["splice"] < len(splices) else {}
    number, page = int(latent["latent"]), splice.get("neuronpedia")
    name = f"{splice.get('hook_out')}, {number}" if len(splices) > 1 else str(number)
    return Latent(name, f"{significant(latent['activation'])}, {int(latent['as_active'])}", latent_page(page, number))


def latent_page(page: object, number: int) -> str | None:
    """The address of a latent's page on Neuronpedia, where the dictionary's `page` is one."""
    return f"{SITE}/{page}/{number}" if isinstance(page, str) and PAGE.fullmatch(page) else None
