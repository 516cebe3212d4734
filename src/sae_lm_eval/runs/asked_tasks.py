"""What lm_eval asks of a run's tasks, and what its tasks make of answers: without its loop over models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.attribution.segments import PromptDocument, tails
from sae_lm_eval.comparison.samples import margin_of, margins_of
from sae_lm_eval.errors import UserError
from sae_lm_eval.harness.few_shot_headers import own_text
from sae_lm_eval.runs.model_pool import LoadedSweep

CHOICES = "multiple_choice"
SPOKEN = ("loglikelihood", CHOICES)  # lm_eval's output types of tasks whose answers are scored behind a prompt


@dataclass(frozen=True, eq=False)
class AskedTask:
    """A task with its requests, by document: `documents` and `requests` have an entry for each."""

    name: str
    task: Any
    documents: tuple[PromptDocument, ...]
    requests: tuple[tuple[Any, ...], ...]

    @property
    def shots(self) -> int:
        """In-context examples of its prompts, as lm_eval writes their number."""
        return int(self.task.get_config("num_fewshot") or 0)

    def restricted(self, numbers: Sequence[int]) -> AskedTask:
        """Some of the documents."""
        return replace(
            self,
            documents=tuple(self.documents[at] for at in numbers),
            requests=tuple(self.requests[at] for at in numbers),
        )

    def accuracy(self, answers: Sequence[Sequence[tuple[float, bool]]]) -> np.ndarray:
        """1 where a document is answered right, else 0, by the first metric of the task that is right or wrong.

        Raises `UserError` where there is none.
        """
        scores = self._scores(answers)
        for metric in sorted(scores[0], key=lambda name: name != "acc"):
            values = [document_scores.get(metric) for document_scores in scores]
            if all(isinstance(value, int | float | bool | np.number) and value in (0, 1) for value in values):
                return np.array(values, dtype=float)
        raise UserError(f"{self.name} has no metric that is right or wrong, only {', '.join(scores[0])}: leave it out.")

    def _scores(self, answers: Sequence[Sequence[tuple[float, bool]]]) -> list[Mapping[str, Any]]:
        """The task's own metrics of each document, from (log-probability, greedy) of its requests."""
        for requests, responses in zip(self.requests, answers, strict=True):
            for request, response in zip(requests, responses, strict=True):
                request.resps, request.filtered_resps = [response], {}
        self.task.apply_filters()
        first = next(iter(self.requests[0][0].filtered_resps))
        return [
            self.task.process_results(requests[0].doc, [request.filtered_resps[first] for request in requests])
            for requests in self.requests
        ]

    def margins(self, answers: Sequence[Sequence[tuple[float, bool]]], right: Sequence[Any] | None) -> np.ndarray:
        """Of each document, in nats; nan where the right choices are not known."""
        if right is None:
            return np.full(len(answers), np.nan)
        return np.array(
            [
                margin_of(np.array([a[0] for a in document_answers]), set(choices))
                for document_answers, choices in zip(answers, right, strict=True)
            ]
        )

    def right(self, answers: Sequence[Sequence[tuple[float, bool]]], accuracy: np.ndarray) -> Sequence[Any] | None:
        """The right choices of each document, as the baseline's answers and its accuracy tell; None where unknown."""
        if self.task.OUTPUT_TYPE != CHOICES or any(
            len(document_answers) != len(document.choices)
            for document_answers, document in zip(answers, self.documents, strict=True)
        ):
            return None
        frame = pd.DataFrame(
            {
                "filtered_resps": list(answers),
                "target": [str(self.task.doc_to_target(requests[0].doc)) for requests in self.requests],
                "continuations": [[request.args[1] for request in requests] for requests in self.requests],
                "acc": [float(value) for value in accuracy],
            }
        )
        return margins_of(frame)[2]


def check_asked(tasks: Mapping[str, Any]) -> None:
    """Raise `UserError` where one of lm_eval's `tasks` asks anything else than log-probabilities behind a prompt."""
    others = {name: task.OUTPUT_TYPE for name, task in tasks.items() if task.OUTPUT_TYPE not in SPOKEN}
    if others:
        name, kind = next(iter(others.items()))
        raise UserError(
            f"where explains tasks that score answers behind a prompt, and {name} asks {kind}: leave out "
            f"{', '.join(others)}."
        )


def asked_tasks(loaded: LoadedSweep, lm: Any) -> list[AskedTask]:
    """The tasks of a run with the requests that lm_eval makes for `lm`: its few-shot examples, template and limits.

    lm_eval's own loop makes them, which is given answers that say nothing.
    """
    silent = lm.answering_as(lm.spliced, loglikelihood=lambda requests, **_: [(-1.0, False)] * len(requests))
    loaded.evaluate("baseline", silent, bootstrap_iters=0, log_samples=False, use_cache=None, evaluation_tracker=None)
    return [_asked_task(name, task) for name, task in loaded.tasks["tasks"].items()]


def _asked_task(name: str, task: Any) -> AskedTask:
    by_document: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        by_document[instance.doc_id].append(instance)
    requests = [
        tuple(sorted(instances, key=lambda instance: instance.idx)) for _, instances in sorted(by_document.items())
    ]
    owns = [own_text(task, instances[0].doc) for instances in requests]
    tail = tails([own or "" for own in owns])
    documents = [
        PromptDocument(name, instances[0].doc_id, own, _choices(task, instances[0].doc), dict(instances[0].doc), tail)
        for instances, own in zip(requests, owns, strict=True)
    ]
    return AskedTask(name, task, tuple(documents), tuple(requests))


def _choices(task: Any, doc: Any) -> tuple[str, ...]:
    if task.OUTPUT_TYPE != CHOICES:
        return ()
    if getattr(task, "multiple_input", 0):  # the choices are prompts, and what is scored behind them is one text
        return (str(task.doc_to_target(doc)),) * len(task.doc_to_choice(doc))
    choices = task.doc_to_choice(doc)
    return tuple(map(str, choices)) if isinstance(choices, list | tuple) else ()
