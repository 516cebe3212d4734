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
    asked = [one for task in results.without_fidelity().tasks for one in _asked_of(results, task)]
    if not asked:
        return
    documents = _table(asked, lm)
    untouched = None if baseline is None else _of_baseline(baseline)
    if untouched is not None and lm.spliced.choices.splice == "reconstruction" and lm.spliced.is_scored:
        documents = _with_latents(documents, _losses(documents, untouched), asked, lm.spliced)
    write_documents(results, documents)


def _of_baseline(folder: Path) -> pd.DataFrame | None:
    try:
        return document_table(read_results(folder))
    except UserError as error:
        logger.warning("%s Which latents are active at the answers is not measured.", error)
        return None


class Asked(NamedTuple):
    """A document, its requests as (context, continuation), and what is known of the answers.

    `right` are the indices of the right ones and `margin` is in nats; either is None where there are no choices.
    """

    task: str
    sample: Mapping[str, Any]
    requests: list[tuple[str, str | None]]
    logprobs: list[float] | None
    right: list[int] | None
    margin: float | None


def _asked_of(results: Results, task: str) -> Iterator[Asked]:
    """By the task's first filter."""
    samples = list(results.whole_samples(task))
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    kind = results.task_config(task).output_type
    requests = [list(map(_request, _with_question(sample, sample["arguments"].values()))) for sample in samples]
    unknown: list[Any] = [None] * len(samples)
    margin, right = unknown, unknown
    if kind == "multiple_choice":
        continuations = [[continuation for _, continuation in of] for of in requests]
        values, _, found = margins_of(pd.DataFrame(samples).assign(continuations=continuations))
        margin, right = values.tolist(), unknown if found is None else list(map(list, found))
    elif kind == "loglikelihood":
        right = [[0]] * len(samples)
    logprobs = unknown if kind == "generate_until" else map(_logprobs, samples)
    return map(Asked, [task] * len(samples), samples, requests, logprobs, right, margin)


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


def _table(asked: Sequence[Asked], lm: Any) -> pd.DataFrame:
    tasks = dict.fromkeys(one.task for one in asked)
    lengths, divergences = ({task: of.of_documents(task) for task in tasks} for of in (lm.cut_prompts, lm.divergence))
    rows = []
    for one in asked:
        contexts = [context for context, _ in one.requests]
        prompt = commonprefix(contexts)  # noqa: RUF071 - letters are meant, though a module for paths has the function
        texts = [f"{context[len(prompt) :]}{text}" for context, text in one.requests if text is not None]
        document = one.sample["doc_id"]
        measured = [length for length in lengths[one.task].get(document, ()) if length is not None]
        kl = divergences[one.task].get(document, [])
        nats, positions = np.sum([of for of in kl if of is not None] or [(0.0, 0)], axis=0).tolist()
        known = positions > 0 and None not in kl
        rows.append(
            {
                "task": one.task,
                "doc_id": document,
                "doc_hash": one.sample["doc_hash"],
                "prompt": prompt,
                "answers": texts or [str(of[0]) for of in one.sample["resps"] if isinstance(of[0], str)],
                "target": one.sample["target"],
                "right": one.right,
                "logprobs": one.logprobs,
                "chosen": int(np.argmax(one.logprobs)) if one.logprobs and len(one.logprobs) > 1 else None,
                "margin": one.margin,
                "tokens": max((length.tokens for length in measured), default=None),
                "tokens_cut": max((length.lost for length in measured), default=None),
                "kl": nats / positions if known else None,
                "positions": int(positions) if known else None,
            }
        )
    return pd.DataFrame(rows)


def _losses(documents: pd.DataFrame, untouched: pd.DataFrame) -> np.ndarray:
    """What each document loses of its margin, or else of its one continuation's log-probability, in nats."""
    before = documents[KEY].merge(untouched, how="left", on=KEY)

    def score(of: Any) -> np.ndarray:
        alone = [float("nan") if one is None or len(one) != 1 else one[0] for one in _listed(of["logprobs"])]
        return of["margin"].astype(float).fillna(pd.Series(alone, of.index)).to_numpy()

    return score(before) - score(documents)


def _listed(column: Any) -> list[list[Any] | None]:
    """Lists as they were written; a table that was read has arrays."""
    return [None if of is None or of is pd.NA or isinstance(of, float) else list(of) for of in column]


def _with_latents(documents: pd.DataFrame, lost: np.ndarray, asked: Sequence[Asked], model: Any) -> pd.DataFrame:
    """With `l0`, how many latents are active at the right answer's positions, and of the documents that lose most the
    `latents` that are as active in the fewest of `others` documents."""
    from sae_lm_eval.fidelity.latents_at_answers import latents_at_answers

    known = [number for number, one in enumerate(asked) if one.right]
    worst = [
        number
        for places in pd.Series(range(len(asked))).groupby([one.task for one in asked], sort=False).groups.values()
        for number in sorted(places, key=lambda place: -lost[place] if lost[place] > 0 else np.inf)[:WORST]
        if lost[number] > 0 and asked[number].right
    ]
    others = [known[int(at)] for at in np.unique(np.linspace(0, len(known) - 1, min(OTHERS, len(known))))]
    chosen = sorted({*worst, *others})
    if not chosen:
        return documents
    pairs = [asked[number].requests[(asked[number].right or [0])[0]] for number in chosen]
    queries = [model.query(*ids) for ids in model.tokens.pairs([(context, text or "") for context, text in pairs])]
    try:
        with model.evaluation():
            found = latents_at_answers(model, queries)
    except ValueError as error:
        logger.warning("Which latents are active at the answers is not measured: %s.", error)
        return documents
    place = {number: at for at, number in enumerate(chosen)}
    columns = pd.DataFrame({"l0": None, "latents": None, "others": None}, documents.index, dtype=object)
    splices = range(len(model.variant.splices))
    for number in chosen:
        of = [found[place[number], splice].l0 for splice in splices if (place[number], splice) in found]
        if of and None not in of:
            columns.loc[number, "l0"] = sum(filter(None, of))
    for number in worst:
        beside = [place[other] for other in others if other != number]
        columns.at[number, "latents"] = _unusual(found, place[number], splices, beside)
        columns.at[number, "others"] = len(beside)
    return documents.join(columns)


def _unusual(found: ByQuery, query: int, splices: range, beside: Sequence[int]) -> list[dict[str, Any]]:
    """The active latents that are as active in the fewest of the queries `beside`, and among these the most active."""
    told = []
    for splice in splices:
        if (query, splice) not in found:
            continue
        of_others = [found[other, splice].largest for other in beside if (other, splice) in found]
        for latent, activation in found[query, splice].largest.items():
            as_active = sum(abs(of.get(latent, 0.0)) >= abs(activation) for of in of_others)
            told.append({"splice": splice, "latent": latent, "activation": activation, "as_active": as_active})
    return sorted(told, key=lambda one: (one["as_active"], -abs(one["activation"])))[:LATENTS]
