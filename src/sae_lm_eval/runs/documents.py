"""Of each document of a run what was asked and answered, and how: a table beside lm_eval's samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from sae_lm_eval.comparison.samples import margins_of
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.results.documents import KEY, document_table, write_documents
from sae_lm_eval.results.results import Results, read_results

if TYPE_CHECKING:
    from sae_lm_eval.fidelity.latents_at_answers import ByQuery

logger = logger_of(__name__)

WORST = 3  # documents of a task, whose latents are told
OTHERS = 64  # documents from all over the run, beside which latents are unusual
LATENTS = 5  # of a document


def keep_documents(folder: Path, lm: Any, baseline: Path | None) -> None:
    """Write the documents of the results in `folder`, which the adapter `lm` has just answered.

    Of a reconstruction also which latents were active at the answers: of the documents that lose most beside those of
    the `baseline`'s folder, and of some others.
    """
    results = read_results(folder)
    scored = [document for task in results.without_fidelity().tasks for document in _scored_documents(results, task)]
    if not scored:
        return
    documents = _table(scored, lm)
    untouched = None if baseline is None else _of_baseline(baseline)
    if untouched is not None and lm.spliced.choices.splice == "reconstruction" and lm.spliced.is_scored:
        documents = _with_latents(documents, _losses(documents, untouched), scored, lm.spliced)
    write_documents(results, documents)


def _of_baseline(folder: Path) -> pd.DataFrame | None:
    try:
        return document_table(read_results(folder))
    except UserError as error:
        logger.warning("%s Which latents are active at the answers is not measured.", error)
        return None


class ScoredDocument(NamedTuple):
    """A document, its requests as (context, continuation), and what is known of the answers.

    `right` are the indices of the right ones and `margin` is in nats; either is None where there are no choices.
    """

    task: str
    sample: Mapping[str, Any]
    requests: list[tuple[str, str | None]]
    logprobs: list[float] | None
    right: list[int] | None
    margin: float | None


def _scored_documents(results: Results, task: str) -> Iterator[ScoredDocument]:
    """By the task's first filter."""
    samples = list(results.whole_samples(task))
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    kind = results.task_config(task).output_type
    requests = [list(map(_request, _with_question(sample, sample["arguments"].values()))) for sample in samples]
    unknown: list[Any] = [None] * len(samples)
    margin, right = unknown, unknown
    if kind == "multiple_choice":
        continuations = [[continuation for _, continuation in pairs] for pairs in requests]
        values, _, right_choices = margins_of(pd.DataFrame(samples).assign(continuations=continuations))
        margin, right = values.tolist(), unknown if right_choices is None else list(map(list, right_choices))
    elif kind == "loglikelihood":
        right = [[0]] * len(samples)
    logprobs = unknown if kind == "generate_until" else map(_logprobs, samples)
    return map(ScoredDocument, [task] * len(samples), samples, requests, logprobs, right, margin)


def _with_question(sample: Mapping[str, Any], values: Any) -> list[Any]:
    """acc_mutual_info asks as many again without it."""
    values = list(values)
    return values[: len(values) // 2] if "acc_mutual_info" in sample else values


def _request(arguments: Mapping[str, Any]) -> tuple[str, str | None]:
    context, continuation = (arguments.get(name) for name in ("arg_0", "arg_1"))
    return str(context), continuation if isinstance(continuation, str) else None


def _logprobs(sample: Mapping[str, Any]) -> list[float] | None:
    try:
        return [float(answer[0]) for answer in _with_question(sample, sample["filtered_resps"])]
    except (TypeError, ValueError, LookupError):
        return None  # a filter made something else of them, or they are whole texts


def _table(scored: Sequence[ScoredDocument], lm: Any) -> pd.DataFrame:
    tasks = dict.fromkeys(document.task for document in scored)
    lengths, divergences = (
        {task: records.of_documents(task) for task in tasks} for records in (lm.cut_prompts, lm.divergence)
    )
    rows = []
    for document in scored:
        contexts = [context for context, _ in document.requests]
        prompt = commonprefix(contexts)  # noqa: RUF071 - letters are meant, though a module for paths has the function
        texts = [f"{context[len(prompt) :]}{text}" for context, text in document.requests if text is not None]
        doc_id, logprobs = document.sample["doc_id"], document.logprobs
        measured = [length for length in lengths[document.task].get(doc_id, ()) if length is not None]
        kl = divergences[document.task].get(doc_id, [])
        nats, positions = np.sum([sums for sums in kl if sums is not None] or [(0.0, 0)], axis=0).tolist()
        has_kl = positions > 0 and None not in kl
        rows.append(
            {
                "task": document.task,
                "doc_id": doc_id,
                "doc_hash": document.sample["doc_hash"],
                "prompt": prompt,
                "answers": texts or [str(text) for text, *_ in document.sample["resps"] if isinstance(text, str)],
                "target": document.sample["target"],
                "right": document.right,
                "logprobs": logprobs,
                "chosen": int(np.argmax(logprobs)) if logprobs and len(logprobs) > 1 else None,
                "margin": document.margin,
                "tokens": max((length.tokens for length in measured), default=None),
                "tokens_cut": max((length.lost for length in measured), default=None),
                "kl": nats / positions if has_kl else None,
                "positions": int(positions) if has_kl else None,
            }
        )
    return pd.DataFrame(rows)


def _losses(documents: pd.DataFrame, untouched: pd.DataFrame) -> np.ndarray:
    """What each document loses of its margin, or else of its one continuation's log-probability, in nats."""
    before = documents[KEY].merge(untouched, how="left", on=KEY)

    def score(table: Any) -> np.ndarray:
        alone = [
            float("nan") if logprobs is None or len(logprobs) != 1 else logprobs[0]
            for logprobs in _listed(table["logprobs"])
        ]
        return table["margin"].astype(float).fillna(pd.Series(alone, table.index)).to_numpy()

    return score(before) - score(documents)


def _listed(column: Any) -> list[list[Any] | None]:
    """Lists as they were written; a table that was read has arrays."""
    return [None if cell is None or cell is pd.NA or isinstance(cell, float) else list(cell) for cell in column]


def _with_latents(
    documents: pd.DataFrame, lost: np.ndarray, scored: Sequence[ScoredDocument], model: Any
) -> pd.DataFrame:
    """With `l0`, how many latents are active at the right answer's positions, and of the documents that lose most the
    `latents` that are as active in the fewest of `others` documents."""
    from sae_lm_eval.fidelity.latents_at_answers import latents_at_answers

    candidates = [number for number, document in enumerate(scored) if document.right]
    tasks = [document.task for document in scored]
    worst = [
        number
        for places in pd.Series(range(len(scored))).groupby(tasks, sort=False).groups.values()
        for number in sorted(places, key=lambda place: -lost[place] if lost[place] > 0 else np.inf)[:WORST]
        if lost[number] > 0 and scored[number].right
    ]
    others = [
        candidates[int(at)] for at in np.unique(np.linspace(0, len(candidates) - 1, min(OTHERS, len(candidates))))
    ]
    chosen = sorted({*worst, *others})
    if not chosen:
        return documents
    pairs = [scored[number].requests[(scored[number].right or [0])[0]] for number in chosen]
    queries = [model.query(*ids) for ids in model.tokens.pairs([(context, text or "") for context, text in pairs])]
    try:
        with model.evaluation():
            by_query = latents_at_answers(model, queries)
    except ValueError as error:
        logger.warning("Which latents are active at the answers is not measured: %s.", error)
        return documents
    place = {number: at for at, number in enumerate(chosen)}
    columns = pd.DataFrame({"l0": None, "latents": None, "others": None}, documents.index, dtype=object)
    splices = range(len(model.variant.splices))
    for number in chosen:
        counts = [by_query[place[number], splice].l0 for splice in splices if (place[number], splice) in by_query]
        if counts and None not in counts:
            columns.loc[number, "l0"] = sum(filter(None, counts))
    for number in worst:
        beside = [place[other] for other in others if other != number]
        columns.at[number, "latents"] = _unusual(by_query, place[number], splices, beside)
        columns.at[number, "others"] = len(beside)
    return documents.join(columns)


def _unusual(by_query: ByQuery, query: int, splices: range, beside: Sequence[int]) -> list[dict[str, Any]]:
    """The active latents that are as active in the fewest of the queries `beside`, and among these the most active."""
    latents = []
    for splice in splices:
        if (query, splice) not in by_query:
            continue
        of_others = [by_query[other, splice].largest for other in beside if (other, splice) in by_query]
        for latent, activation in by_query[query, splice].largest.items():
            as_active = sum(abs(largest.get(latent, 0.0)) >= abs(activation) for largest in of_others)
            latents.append({"splice": splice, "latent": latent, "activation": activation, "as_active": as_active})
    return sorted(latents, key=lambda row: (row["as_active"], -abs(row["activation"])))[:LATENTS]
