"""The samples of two runs -> the same documents side by side, or a sentence that says why they do not pair."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.errors import UserError
from sae_lm_eval.results.results import CHANCE, KEPT, Results

KEY = ["filter", "doc_id"]
MARGIN, RIGHT = "margin (nats)", "right (indices)"  # no metric is called so
HASHES = {
    "doc_hash": "is another document",
    "prompt_hash": "was asked with another prompt (few-shot examples, chat template or system instruction)",
    "target_hash": "has another target",
}


def read_answers(results: Results, task: str) -> pd.DataFrame:
    """The documents of a task by filter and doc_id, in order: hashes, doc, metrics, `MARGIN`, `CHANCE`, `RIGHT`.

    The margin is the log-probability of the right answer less that of the best wrong one, nan where there are no
    choices or where lm_eval does not say which is right; the chance that of guessing right, nan without choices; the
    right choices are a tuple of their indices, None where that is unknown.
    """
    frame = results.samples(task)
    twice = frame.duplicated(KEY)
    if twice.any():
        first = frame[twice].iloc[0]
        raise UserError(
            f"The samples of {results.name} have document {first['doc_id']} of {task} twice (filter {first['filter']})."
        )
    choices = results.task_config(task).output_type == "multiple_choice"
    chance = frame.get(CHANCE, np.nan)
    frame[MARGIN], frame[CHANCE], frame[RIGHT] = margins_of(frame) if choices else (np.nan, chance, None)
    return frame.set_index(KEY).sort_index().drop(columns=["target", "filtered_resps", "continuations"])


def metric_columns(answers: pd.DataFrame) -> list[str]:
    return [name for name in answers.columns if name not in (*KEPT, MARGIN, CHANCE, RIGHT)]


def check_runs(baseline: Results, variant: Results) -> None:
    """Raise `UserError` where the two were not asked the same tasks in the same way, as far as their heads tell."""
    pair = f"{baseline.name} ('{baseline.file}') and {variant.name} ('{variant.file}')"
    only = [
        f"only {run.name} has {', '.join(missing[:5])}{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}"
        for run, other in ((baseline, variant), (variant, baseline))
        if (missing := [task for task in run.tasks if task not in other.tasks])
    ]
    if only:
        raise UserError(f"{pair} were evaluated on different tasks: {'; '.join(only)}.")
    for task in baseline.tasks:
        for what, before, after in (
            ("shots", baseline.n_shot.get(task), variant.n_shot.get(task)),
            ("version", baseline.versions.get(task), variant.versions.get(task)),
        ):
            if before != after:
                raise UserError(f"{pair} differ in the {what} of {task}: {before} and {after}.")


def check_documents(task: str, baseline: Results, before: pd.DataFrame, variant: Results, after: pd.DataFrame) -> None:
    """Raise `UserError` where a document, prompt or target of a task is not the same in both runs."""
    for run, other, mine, theirs in ((baseline, variant, before, after), (variant, baseline, after, before)):
        missing = mine.index.difference(theirs.index)
        if len(missing):
            which, document = missing[0]
            limits = ", ".join(f"{r.name} has --limit {r.config.get('limit') or 'none'}" for r in (baseline, variant))
            raise UserError(
                f"{len(missing)} of {len(mine)} answers of {run.name} to {task} are missing in {other.name}, the first "
                f"of them to document {document} (filter {which}); {limits}. Evaluate both on the same documents."
            )
    for name, what in HASHES.items():
        differs = before[name].to_numpy() != after[name].to_numpy()
        if differs.any():
            which, document = before.index[int(differs.argmax())]
            raise UserError(
                f"Document {document} of {task} (filter {which}) {what} in {variant.name} than in {baseline.name}; "
                f"{name} differs for {differs.sum()} of {len(before)}."
            )
    for name in dict.fromkeys((*metric_columns(before), *metric_columns(after))):
        before_has, after_has = (side.reindex(columns=[name])[name].notna().to_numpy() for side in (before, after))
        if (before_has != after_has).any():
            raise UserError(f"{task} has '{name}' for other documents in {variant.name} than in {baseline.name}.")


def margins_of(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]] | None]:
    """`MARGIN`, `CHANCE` and `RIGHT` of each line of a task's samples."""
    undefined = np.full(len(frame), np.nan), np.full(len(frame), np.nan), None
    try:
        logprobs = [np.array([float(answer[0]) for answer in answers]) for answers in frame["filtered_resps"]]
    except (TypeError, ValueError, LookupError, OverflowError):
        return undefined  # a filter made something else of them
    if "acc_mutual_info" in frame:  # the second half is asked without the question
        logprobs = [values[: len(values) // 2] for values in logprobs]
    if not all(map(len, logprobs)):
        return undefined
    chance = np.array([1 / len(values) for values in logprobs])
    right = _right_choices(frame, logprobs)
    if right is None:
        return np.full(len(frame), np.nan), chance, None
    margins = [margin_of(values, choices) for values, choices in zip(logprobs, right, strict=True)]
    indices = [tuple(sorted(choices)) for choices in right]
    return np.array(margins), chance * [len(choices) for choices in right], indices


def margin_of(logprobs: np.ndarray, right: Collection[int]) -> float:
    """Log-probability of the likeliest right choice less that of the likeliest wrong one; nan where one is missing."""
    wrong = [value for index, value in enumerate(logprobs) if index not in right]
    best = max((logprobs[index] for index in right), default=-np.inf)
    return float(best - max(wrong)) if wrong and np.isfinite(best) and np.isfinite(max(wrong)) else float("nan")


def _right_choices(frame: pd.DataFrame, logprobs: Sequence[np.ndarray]) -> list[set[int]] | None:
    """The right choices of each document: the reading of the logged target that explains each logged accuracy.

    A target is an index, several of them, or a choice's text, by the task's own code; with two choices whether the
    preferred one was right says it as well.
    """
    if "acc" not in frame or any(type(acc) not in (int, float, bool) or acc not in (0, 1) for acc in frame["acc"]):
        return None
    rows = list(zip(frame["target"], frame["continuations"], logprobs, frame["acc"], strict=True))
    readings: tuple[Callable[..., set[int]], ...] = (_by_index, _by_text, _by_accuracy)
    for reading in readings:
        choices = [reading(*row) for row in rows]
        explained = (
            (int(values.argmax()) in right) == acc for right, (*_, values, acc) in zip(choices, rows, strict=True)
        )
        if all(choices) and all(explained):
            return choices
    return None


def _by_index(target: str, _continuations: Sequence[Any], logprobs: np.ndarray, _acc: float) -> set[int]:
    return {index for index in _indices(str(target)) if 0 <= index < len(logprobs)}


@lru_cache
def _indices(target: str) -> frozenset[int]:
    try:
        value = ast.literal_eval(target)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return frozenset()
    listed = value if isinstance(value, (list, tuple)) else [value]
    return frozenset(index for index in listed if type(index) is int)


def _by_text(target: str, continuations: Sequence[Any], logprobs: np.ndarray, _acc: float) -> set[int]:
    texts = [str(text).strip() for text in continuations[: len(logprobs)]]
    return {texts.index(str(target).strip())} if str(target).strip() in texts else set()


def _by_accuracy(_target: str, _continuations: Sequence[Any], logprobs: np.ndarray, acc: float) -> set[int]:
    preferred = int(logprobs.argmax())
    return {preferred if acc else 1 - preferred} if len(logprobs) == 2 else set()
