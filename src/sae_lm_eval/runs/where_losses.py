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
    for one in tasks:
        own = [at for at in range(start, start + len(one.documents)) if chosen[at]]
        part = one.restricted([at - start for at in own])
        start += len(one.documents)
        if not own:
            continue
        pairs = {
            key: [[(float(a), bool(b)) for a, b, _ in of[first[at] : first[at + 1]]] for at in own]
            for key, of in answers.items()
        }
        accuracy = {key: part.accuracy(of) for key, of in pairs.items()}
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
    for one in answered(tasks, chosen, owner, answers):
        for key, of in one.answers.items():
            measured[ACCURACY][key].append(one.accuracy[key])
            measured[MARGIN][key].append(one.task.margins(of, one.right))
    out = {}
    for name, of_keys in measured.items():
        values = {key: np.concatenate(parts) for key, parts in of_keys.items()}
        of = {key: values[BASELINE] - value for key, value in values.items() if key != BASELINE}
        out[name] = PairedLosses(name, values[BASELINE], of)
    tokens = np.bincount(owner, weights=targets, minlength=len(chosen))[chosen]
    kl = {key: np.bincount(owner, weights=of[:, 2], minlength=len(chosen)) for key, of in answers.items()}
    lost = {key: of[chosen] for key, of in kl.items() if key != BASELINE}
    out[KL] = PairedLosses(KL, np.zeros(len(tokens)), lost, tokens)
    return out


def margins_lost(
    contrasts: Sequence[Contrast], owner: np.ndarray, answers: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """By key what the document of each contrast lost of its margin (nats), less than the baseline."""
    first = np.searchsorted(owner, [[one.document, one.document + 1] for one in contrasts]).reshape(-1, 2)
    margins = {
        key: np.array(
            [
                margin_of(of[start:end, 0], {*one.right_choices})
                for one, (start, end) in zip(contrasts, first, strict=True)
            ]
        )
        for key, of in answers.items()
    }
    return {key: margins[BASELINE] - of for key, of in margins.items() if key != BASELINE}


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
    for one in answered(tasks, chosen, owner, {BASELINE: answers[BASELINE], key: answers[key]}):
        for number, of, right in zip(one.numbers, one.answers[key], one.right or (), strict=one.right is not None):
            logprobs = np.array([logprob for logprob, _ in of])
            is_right = np.isin(np.arange(len(of)), list(right))
            if is_right.all() or not is_right.any() or not np.isfinite(logprobs).all():
                continue
            best, worst = (int(np.where(side, logprobs, -np.inf).argmax()) for side in (is_right, ~is_right))
            own = queries[first[number] : first[number + 1]]
            out.append(Contrast(number, own[best], own[worst], tuple(np.flatnonzero(is_right).tolist())))
    return out
