"""Documents by the length of their prompts: within and beyond what a dictionary was trained on, and cut ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_lm_eval.comparison.subsets import Cut
from sae_lm_eval.errors import UserError
from sae_lm_eval.results.documents import KEY, document_table
from sae_lm_eval.results.results import Results

SECTION = "length"


def trained_context(run: Results) -> int | None:
    """The shortest context, in tokens, that a dictionary of a variant was trained on; None where none says."""
    sizes = [splice.get("context_size") for splice in run.provenance.get("splices") or []]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def length_cuts(baseline: Results, variants: Sequence[Results]) -> tuple[list[Cut], list[str]]:
    """The rows for documents that are longer than a dictionary's context, and for the others; for documents whose
    prompts are cut, and for the others; each with what is to be said of it. None where no document is.

    Lengths are in the tables of documents that `run` writes. Without them there are no rows.
    """
    try:
        tables = (document_table(run, [*KEY, "tokens", "tokens_cut"]) for run in (baseline, *variants))
        lengths: Any = next((table for table in tables if table is not None), None)
    except UserError as error:
        return [], [f"{error} Drops by the length of the prompt are left out."]
    if lengths is None:
        return [], []
    lengths = lengths[lengths["task"].isin(baseline.tasks) & lengths["tokens"].notna()]
    cuts = []
    for size in sorted({size for run in variants if (size := trained_context(run))}):
        names = frozenset(run.name for run in variants if trained_context(run) == size)
        beyond = lengths["tokens"] - lengths["tokens_cut"] > size  # of what the model reads
        cuts += _both(lengths, beyond, f"within {size} tokens", f"beyond {size} tokens", names)
    return cuts + _both(lengths, lengths["tokens_cut"] > 0, "whole prompts", "cut prompts", None), []


def _both(lengths: Any, chosen: Any, other: str, name: str, variants: frozenset[str] | None) -> list[Cut]:
    if not chosen.any():
        return []
    parts = [(other, lengths[~chosen]), (name, lengths[chosen])]
    return [_cut(named, part, variants) for named, part in parts if len(part)]


def _cut(name: str, part: Any, variants: frozenset[str] | None) -> Cut:
    documents = {str(task): set(rows["doc_id"]) for task, rows in part.groupby("task", sort=False)}
    return Cut(SECTION, name, None, name, list(documents), None, documents, variants)
