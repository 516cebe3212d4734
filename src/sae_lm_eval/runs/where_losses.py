"""What each document lost to the patches of a variant, and by which two answers its margin is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_lm_eval.attribution.gradients import Contrast
from sae_lm_eval.comparison.restored import ACCURACY, KL, MARGIN, PairedLosses
from sae_lm_eval.comparison.samples import margin_of
from sae_lm_eval.runs.asked_tasks import AskedTask
from sae_lm_eval.runs.folder_names import BASELINE
from sae_lm_eval.scoring.request import Query


@dataclass(frozen=True, eq=False)
class AnsweredTask:
    """The chosen documents of a task by their `numbers` among all, and by key the (log-probability, greedy) of the
    requests of each. `accuracy` goes by key; `right` has the right choices of each document, None where unknown.
    """

    task: AskedTask
    numbers: Sequence[int]
    answers: Mapping[str, list[list[tuple[float, bool]]]]
    accuracy: Mapping[str, np.ndarray]
    right: Sequence[Any] | None


def answered(
    tasks: Sequence[AskedTask], chosen: np.ndarray, owner: np.ndarray, answers: Mapping[str, np.ndarray]
) -> Iterator[AnsweredTask]:
    """Each task of which documents are chosen, by the answers (requests, 3) of each key, the baseline's included."""
    first, start = np.searchsorted(owner, np.arange(len(chosen) + 1)), 0
    for task in tasks:
        own = [at for at in range(start, start + len(task.documents)) if chosen[at]]
        part = task.restricted([at - start for at in own])
        start += len(task.documents)
        if not own:
            continue
        pairs = {
            key: [[(float(a), bool(b)) for a, b, _ in scores[first[at] : first[at + 1]]] for at in own]
            for key, scores in answers.items()
        }
        accuracy = {key: part.accuracy(responses) for key, responses in pairs.items()}
        yield AnsweredTask(part, own, pairs, accuracy, part.right(pairs[BASELINE], accuracy[BASELINE]))


def losses_of(
    tasks: Sequence[AskedTask],
    chosen: np.ndarray,
    owner: np.ndarray,
    answers: Mapping[str, np.ndarray],
    targets: np.ndarray,
) -> dict[str, PairedLosses]:
    """By measure what each chosen document lost, less than the baseline, by the answers (requests, 3) of each key."""
    measured: dict[str, dict[str, list[np.ndarray]]] = {
        name: {key: [] for key in answers} for name in (ACCURACY, MARGIN)
    }
    for part in answered(tasks, chosen, owner, answers):
        for key, responses in part.answers.items():
            measured[ACCURACY][key].append(part.accuracy[key])
            measured[MARGIN][key].append(part.task.margins(responses, part.right))
    out = {}
    for name, of_keys in measured.items():
        values = {key: np.concatenate(parts) for key, parts in of_keys.items()}
        losses = {key: values[BASELINE] - value for key, value in values.items() if key != BASELINE}
        out[name] = PairedLosses(name, values[BASELINE], losses)
    tokens = np.bincount(owner, weights=targets, minlength=len(chosen))[chosen]
    kl = {key: np.bincount(owner, weights=scores[:, 2], minlength=len(chosen)) for key, scores in answers.items()}
    lost = {key: sums[chosen] for key, sums in kl.items() if key != BASELINE}
    out[KL] = PairedLosses(KL, np.zeros(len(tokens)), lost, tokens)
    return out


def margins_lost(
    contrasts: Sequence[Contrast], owner: np.ndarray, answers: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """By key what the document of each contrast lost of its margin (nats), less than the baseline."""
    bounds = [[contrast.document, contrast.document + 1] for contrast in contrasts]
    first = np.searchsorted(owner, bounds).reshape(-1, 2)
    margins = {
        key: np.array(
            [
                margin_of(scores[start:end, 0], {*contrast.right_choices})
                for contrast, (start, end) in zip(contrasts, first, strict=True)
            ]
        )
        for key, scores in answers.items()
    }
    return {key: margins[BASELINE] - margin for key, margin in margins.items() if key != BASELINE}


def contrasts_of(
    tasks: Sequence[AskedTask],
    chosen: np.ndarray,
    owner: np.ndarray,
    answers: Mapping[str, np.ndarray],
    queries: Sequence[Query],
    key: str,
) -> list[Contrast]:
    """The two answers that make the margin of each chosen document by the answers of `key`; where it has a margin."""
    first, out = np.searchsorted(owner, np.arange(len(chosen) + 1)), []
    for part in answered(tasks, chosen, owner, {BASELINE: answers[BASELINE], key: answers[key]}):
        for number, responses, right in zip(
            part.numbers, part.answers[key], part.right or (), strict=part.right is not None
        ):
            logprobs = np.array([logprob for logprob, _ in responses])
            is_right = np.isin(np.arange(len(responses)), list(right))
            if is_right.all() or not is_right.any() or not np.isfinite(logprobs).all():
                continue
            best, worst = (int(np.where(side, logprobs, -np.inf).argmax()) for side in (is_right, ~is_right))
            own = queries[first[number] : first[number + 1]]
            out.append(Contrast(number, own[best], own[worst], tuple(np.flatnonzero(is_right).tolist())))
    return out
