"""In which order the models of a run are evaluated, and what each is asked: what the time left is told by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sae_lm_eval.runs.folder_names import BASELINE
from sae_lm_eval.runtime.time_left import DOCUMENTS, REQUESTS, TEXTS, Turn

KINDS = {"generate_until": TEXTS, "sae_fidelity": DOCUMENTS}  # by lm_eval's output_type; all others are requests


def turns(groups: Iterable[Sequence[str]], once: Iterable[str]) -> list[Turn]:
    """Of the models that are left, by the groups that are answered together; `once` are baselines of their own."""
    of_groups = [Turn(name, not i, name == BASELINE) for group in groups for i, name in enumerate(group)]
    return of_groups + [Turn(name, is_first=True, is_baseline=True) for name in once]


def kinds_of(tasks: Iterable[Any]) -> list[str]:
    """The kinds of what lm_eval's `tasks` ask."""
    return sorted({KINDS.get(task.OUTPUT_TYPE, REQUESTS) for task in tasks})
