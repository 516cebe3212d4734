"""Folders as lm_eval 0.4.13 writes them, from scores that a test chooses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_lm_eval.cli.main import app

CHOICES = 4


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def question(task: str, index: int, right: float, rng: np.random.Generator, field: str | None = None) -> dict[str, Any]:
    """A multiple-choice sample: the preferred choice is the right one where `right` is 1."""
    gold = index % CHOICES
    logprobs = -5 - rng.exponential(size=CHOICES)
    logprobs[gold if right else (gold + 1) % CHOICES] = -1
    doc = {"text": f"{task} {index}"} | ({} if field is None else {"subject": field})
    return {
        "doc_id": index,
        "doc": doc,
        "target": str(gold),
        "arguments": {f"gen_args_{i}": {"arg_0": doc["text"], "arg_1": f" {i}"} for i in range(CHOICES)},
        "resps": [[[str(value), "False"]] for value in logprobs],
        "filtered_resps": [[str(value), "False"] for value in logprobs],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": digest(json.dumps(doc)),
        "prompt_hash": digest(doc["text"]),
        "target_hash": digest(str(gold)),
        "acc": float(right),
    }


def write_run(
    folder: Path,
    samples: Mapping[str, Sequence[dict[str, Any]]],
    scores: Mapping[str, Mapping[str, float]] | None = None,
    *,
    groups: Mapping[str, tuple[Sequence[str], str]] | None = None,
    higher_is_better: Mapping[str, bool] | None = None,
    config: Mapping[str, Any] | None = None,
    model: str = "gpt2",
    shots: int = 0,
    stamp: str = "2026-01-01T00-00-00.000000",
) -> Path:
    """A run of `samples` by task, with `scores` by task where they are no means, and groups "sized" or "unsized"."""
    results: dict[str, dict[str, Any]] = {}
    for task, rows in samples.items():
        means = {f"{m},none": float(np.mean([row[m] for row in rows])) for m in rows[0]["metrics"]} if rows else {}
        results[task] = {"alias": task, "name": task, "sample_len": len(rows)} | {
            **means,
            **(scores or {}).get(task, {}),
        }
    for group, (members, weighting) in (groups or {}).items():
        sizes = [len(samples[task]) if weighting == "sized" else 1 for task in members]
        score = float(np.average([results[task]["acc,none"] for task in members], weights=sizes))
        results[group] = {"alias": group, "name": group, "acc,none": score}
    metrics = {task: dict.fromkeys(rows[0]["metrics"], True) for task, rows in samples.items()}
    raw = {
        "results": results,
        "group_subtasks": {group: list(members) for group, (members, _) in (groups or {}).items()},
        "configs": {task: {"task": task, "output_type": "multiple_choice"} for task in samples},
        "versions": dict.fromkeys(samples, 1.0),
        "n-shot": dict.fromkeys(samples, shots),
        "higher_is_better": {task: {**directions, **(higher_is_better or {})} for task, directions in metrics.items()},
        "n-samples": {task: {"original": len(rows), "effective": len(rows)} for task, rows in samples.items()},
        "config": {"model": "hf", "model_args": {"pretrained": model}, "limit": None, **(config or {})},
        "model_name": model,
    }
    inner = folder / "model"
    inner.mkdir(parents=True, exist_ok=True)
    (inner / f"results_{stamp}.json").write_text(json.dumps(raw))
    for task, rows in samples.items():
        (inner / f"samples_{task}_{stamp}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def answers(right: Mapping[str, Sequence[float]], *, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    return {task: [question(task, i, value, rng) for i, value in enumerate(values)] for task, values in right.items()}


def curve(**given: Any) -> None:
    """`sae-lm-eval curve` with flags by their names; what is None is left out, and True is a flag alone."""
    flags = []
    for name, value in given.items():
        flag = f"-{name}" if len(name) == 1 else f"--{name}"
        flags += [] if value is None else [flag] if value is True else [flag, str(value)]
    app(["curve", *flags], standalone_mode=False)
