"""Questions token by token: how much of a question's margin comes back when the error at one token is put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sae_lm_eval.attribution.gradients import Contrast, TextGradient, margin_gradients
from sae_lm_eval.attribution.patches import Patched
from sae_lm_eval.attribution.segments import PromptDocument
from sae_lm_eval.errors import UserError
from sae_lm_eval.report.question_page import EXACT, GRADIENT, PROMPT, RIGHT, WRONG
from sae_lm_eval.runs.inquiry import MOST_TOKENS, WORST, Inquiry
from sae_lm_eval.scoring.request import Query
from sae_lm_eval.splicing.places import Places

EACH_WAY = 3  # questions that lost most margin, and that gained most
ELSEWHERE = 0  # the label of tokens that are not shown


def named_questions(question: Inquiry, documents: Sequence[PromptDocument], chosen: np.ndarray) -> list[int]:
    """The numbers of the documents that are named. Raises `UserError` where one is not among those that are scored."""
    tasks, out = list(dict.fromkeys(document.task for document in documents)), []
    for text in question.questions:
        if text == WORST:
            continue
        task, _, number = text.rpartition(":")
        if not task and len(tasks) > 1:
            raise UserError(f"--question {text} names no task of several: write it as in --question {tasks[0]}:{text}.")
        own = [at for at, document in enumerate(documents) if document.task == (task or tasks[0])]
        if not own:
            raise UserError(f"--question {text}: there is no task '{task}' among {', '.join(tasks)}.")
        matches = [at for at in own if documents[at].doc_id == int(number)]
        if not matches or not chosen[matches[0]]:
            why = "is fitted on, and not scored" if matches else "is not among those that are asked"
            raise UserError(f"--question {text}: document {number} {why}.")
        out.append(matches[0])
    return out


def shown_questions(question: Inquiry, named: Sequence[int], lost: Mapping[int, float]) -> list[int]:
    """Those that are named, then those that lost most of `lost` (nats, by number), and those that gained most."""
    if WORST not in question.questions:
        return list(dict.fromkeys(named))
    ordered = sorted(lost, key=lambda number: -lost[number])
    most = [number for number in ordered[:EACH_WAY] if lost[number] > 0]
    gained = [number for number in ordered[::-1][:EACH_WAY] if lost[number] < 0]
    return list(dict.fromkeys([*named, *most, *gained]))


def question_record(
    patched: Patched,
    document: PromptDocument,
    contrast: Contrast,
    requests: Sequence[Any],
    queries: Sequence[Query],
) -> dict[str, Any]:
    """A question with a value (nats) for each of its tokens.

    It is the rise of the margin when the error at that token is put back, exactly or, of a long prompt, to first order.
    The prompt and the right answer are shown, and of the likeliest wrong one what is not the same. `queries` and
    `requests` are those of all choices.
    """
    spliced = patched.spliced
    labels = _labels(contrast)
    labelled = [replace(query, labels=_labels_of(query, contrast, labels)) for query in queries]
    variant = spliced.variant
    edited = {
        int(label)
        for query in labelled
        for label in np.asarray(query.labels)[query.spliced(variant.special_ids, variant.first_position)]
    } - {ELSEWHERE}
    keys = {label: f"all but label {label}" for label in sorted(edited)}
    exact = len(keys) <= MOST_TOKENS
    patches = {
        key: replace(variant, places=Places(labels=frozenset({label}), outside=True)) for label, key in keys.items()
    }
    read, patches = (labelled, patches) if exact else (list(queries), {})
    answers = patched.score({"whole": variant, **patches}, read, [document.task] * len(queries))
    margins = {key: _margin(scores[:, 0], contrast.right_choices) for key, scores in answers.items()}
    values = (
        {label: margins[key] - margins["whole"] for label, key in keys.items()}
        if exact
        else _by_gradient(spliced, contrast, labels, edited)
    )
    tokens = []
    for query, side in ((contrast.right, RIGHT), (contrast.wrong, WRONG)):
        request = requests[next(at for at, own in enumerate(queries) if own is query)]
        tokens += _tokens(spliced, request, query, side, labels[side], labels, values)
    return {
        "task": document.task,
        "doc_id": document.doc_id,
        "reason": None,
        "method": EXACT if exact else GRADIENT,
        "margin_baseline": margins["baseline"],
        "margin_variant": margins["whole"],
        "tokens": tokens,
    }


def _labels(contrast: Contrast) -> dict[str, list[int]]:
    """A label for each id of both answers' texts: where these begin alike, one for both."""
    right, wrong, shared = len(contrast.right.ids), len(contrast.wrong.ids), _alike(contrast.right, contrast.wrong)
    of_right = list(range(1, right + 1))
    return {RIGHT: of_right, WRONG: [*of_right[:shared], *range(right + 1, right + 1 + wrong - shared)]}


def _labels_of(query: Query, contrast: Contrast, labels: Mapping[str, Sequence[int]]) -> list[int]:
    """Of the ids of any choice: the labels of the shown text with which it begins alike, as far as it does."""
    same, side = max((_alike(query, contrast.right), RIGHT), (_alike(query, contrast.wrong), WRONG))
    return [*labels[side][:same], *[ELSEWHERE] * (len(query.ids) - same)]


def _alike(query: Query, other: Query) -> int:
    """With how many ids two texts begin in common."""
    pairs = enumerate(zip(query.ids, other.ids, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(query.ids), len(other.ids)))


def _margin(logprobs: np.ndarray, right: Sequence[int]) -> float:
    is_right = np.isin(np.arange(len(logprobs)), list(right))
    return float(logprobs[is_right].max() - logprobs[~is_right].max())


def _by_gradient(
    spliced: Any, contrast: Contrast, labels: Mapping[str, Sequence[int]], edited: set[int]
) -> dict[int, float]:
    """The error of each label times the margin's gradient there, summed over sites."""
    values = dict.fromkeys(edited, 0.0)

    def add(text: TextGradient) -> None:
        own = labels[RIGHT if "right" in text.answers else WRONG]
        worth = sum(site.error_attribution.double().cpu().numpy() for site in text.sites)
        for label, value in zip(own, np.asarray(worth).tolist(), strict=True):
            if label in values:
                values[label] += value

    margin_gradients(spliced, [contrast], add)
    return values


def _tokens(
    spliced: Any,
    request: Any,
    query: Query,
    side: str,
    own: Sequence[int],
    labels: Mapping[str, Sequence[int]],
    values: Mapping[int, float],
) -> list[dict[str, Any]]:
    """The texts of an answer's tokens with their values; of the wrong one those that the right one has not."""
    pair = tuple(map(str, request.args[:2]))
    ((context, continuation),) = spliced.group.pairs([pair])
    ids, text = [*context, *continuation], "".join(pair)
    (spans,) = spliced.tokens.spans([text], [ids])
    pieces = _pieces(spliced.tokens.tokenizer, ids, text, spans)[-(len(query.ids) + 1) :]
    answer = len(query.ids) + 1 - len(query.targets)
    start = 0 if side == RIGHT else sum(a == b for a, b in zip(labels[RIGHT], labels[WRONG], strict=False))
    worth = [values.get(label) for label in own] + [None]
    return [
        {"text": pieces[at], "part": PROMPT if at < answer and side == RIGHT else side, "value": worth[at]}
        for at in range(start, len(pieces))
    ]


def _pieces(tokenizer: Any, ids: Sequence[int], text: str, spans: Sequence[tuple[int, int]] | None) -> list[str]:
    """What each token adds to the text; the names of those without text, and of all where spans are not known."""
    if spans is None:
        return list(map(str, tokenizer.convert_ids_to_tokens(list(ids))))
    out, before = [], 0
    for token, (start, end) in zip(ids, spans, strict=True):
        if end <= start and not before:
            out.append(str(tokenizer.convert_ids_to_tokens(int(token))))
            continue
        out.append(text[before : max(before, end)])
        before = max(before, end)
    return out
