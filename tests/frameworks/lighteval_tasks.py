"""Tasks of lighteval's on files: choices by log-probability, and texts."""

from __future__ import annotations

import os

from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc


def document(line: dict, task_name: str | None = None) -> Doc:
    return Doc(query=line["query"], choices=line["choices"], gold_index=line["gold"], task_name=task_name or "")


def task(name: str, metrics: list, **settings) -> LightevalTaskConfig:
    return LightevalTaskConfig(
        name=name,
        prompt_function=document,
        hf_repo=os.environ["STORY_QUESTIONS"],
        hf_subset="default",
        hf_avail_splits=["train"],
        evaluation_splits=["train"],
        metrics=metrics,
        **settings,
    )


TASKS_TABLE = [
    task("story_endings", [Metrics.loglikelihood_acc]),
    task("story_texts", [Metrics.exact_match], generation_size=4, stop_sequence=["."]),
]
