"""The baseline and its variants on lm_eval's tasks, each written as the results folder that lm_eval writes."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sae_lm_eval.errors import UserError

logger = logging.getLogger(f"lm_eval.{__name__}")  # below lm_eval's own, whose verbosity the user sets

BASELINE = "baseline"
SETTINGS, JOURNAL, LOCK = "run.json", ".answers.sqlite", ".lock"
AT_ONCE = 8  # variants in one forked pass, so that their dictionaries and rows stay within memory
# What cannot change an answer, so that a run may be continued with another.
FREE = frozenset(
    {"batch_size", "max_batch_size", "device", "verbosity", "output_path", "hf_hub_log_args", "show_config"}
)


@dataclass(frozen=True)
class Asked:
    """A variant to evaluate: its name, which is that of its folder, and the adapter's arguments besides the model's."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a variant: its results are in `folder`, or `failed` says why there are none."""

    name: str
    folder: Path
    failed: str | None = None


def run(model_args: Mapping[str, Any], variants: Sequence[Asked], settings: Any, output_path: Path) -> list[Outcome]:
    """Evaluate the untouched model and `variants` in forked passes; a folder for each below `output_path`.

    `settings` is lm_eval's `EvaluatorConfig`: its tasks, limits, seeds. What a run that was cut short had finished is
    kept, and what it had answered is not run again. A variant that cannot be made is left out, with its reason.

    Raises `UserError` where the model cannot be loaded, the folder holds another run or is in use, or a name is
    there twice.
    """
    names = [BASELINE, *(asked.name for asked in variants)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two variants are called '{twice[0]}': give one another name.")
    with locked(output_path):
        remember(output_path, {"model_args": model_args, "variants": [vars(v) for v in variants], **_fixed(settings)})
        waiting = [asked for asked in variants if not (output_path / asked.name).exists()]
        if not waiting and (output_path / BASELINE).exists():
            return [Outcome(name, output_path / name) for name in names]
        failed = _Evaluation(model_args, settings, output_path).all(waiting)
    return [Outcome(name, output_path / name, failed.get(name)) for name in names]


class _Evaluation:
    def __init__(self, model_args: Mapping[str, Any], settings: Any, output_path: Path):
        from sae_lm_eval.adapter import SaeHFLM

        self.model_args, self.settings, self.output_path = model_args, settings, output_path
        self.task_manager = settings.process_tasks(settings.metadata)
        given = {name: getattr(settings, name) for name in ("batch_size", "max_batch_size", "device")}
        make: Any = SaeHFLM  # lm_eval's decorator hides its parameters
        self.baseline: Any = make(sae=[], splice="none", **given, **model_args)

    def all(self, variants: Sequence[Asked]) -> dict[str, str]:
        """Evaluate what is not yet evaluated, a few variants at a time; why those that failed did, by name."""
        failed: dict[str, str] = {}
        for start in range(0, max(1, len(variants)), AT_ONCE):
            failed |= self._together(variants[start : start + AT_ONCE])
        return failed

    def _together(self, variants: Sequence[Asked]) -> dict[str, str]:
        from sae_lm_eval.adapter import join
        from sae_lm_eval.arguments import wanted_of

        made: dict[str, Any] = {}
        failed = {}
        for asked in variants:
            try:
                made[asked.name] = self.baseline.as_variant(wanted_of(**asked.arguments))
            except UserError as error:
                logger.error("%s is left out: %s", asked.name, error)
                failed[asked.name] = str(error)
        join(self.baseline, list(made.values()), self.output_path / JOURNAL)
        arguments = {BASELINE: {"splice": "none"}, **{asked.name: asked.arguments for asked in variants}}
        for name, lm in {BASELINE: self.baseline, **made}.items():
            if not (self.output_path / name).exists():
                self._evaluate(name, lm, {**self.model_args, **arguments[name]})
        return failed

    def _evaluate(self, name: str, lm: Any, model_args: Mapping[str, Any]) -> None:
        import lm_eval
        from lm_eval.loggers import EvaluationTracker

        s = self.settings
        unfinished = self.output_path / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        tracker = EvaluationTracker(output_path=str(unfinished), **s.hf_hub_log_args)
        seeds = dict(
            zip(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), s.seed, strict=True)
        )
        evaluate: Any = lm_eval.simple_evaluate  # its decorator hides its parameters
        results = evaluate(
            model=lm,
            model_args=dict(model_args),
            evaluation_tracker=tracker,
            task_manager=self.task_manager,
            log_samples=True,
            **{key: getattr(s, key) for key in PASSED},
            **{key: s.cache_requests.get(key, False) for key in CACHES},
            **seeds,
        )
        if results is None:  # another process of several gathers and writes
            return
        samples = results.pop("samples")
        results["config"]["model"] = "sae_hf"
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        os.replace(unfinished, self.output_path / name)


CACHES = ("cache_requests", "rewrite_requests_cache", "delete_requests_cache")
PASSED = (
    *("tasks", "num_fewshot", "batch_size", "max_batch_size", "device", "use_cache", "limit", "samples"),
    *("check_integrity", "write_out", "system_instruction", "apply_chat_template", "fewshot_as_multiturn"),
    *("gen_kwargs", "verbosity", "predict_only", "confirm_run_unsafe_code", "metadata"),
)


def _fixed(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name not in FREE and name != "model_args"}


def folder_name(arguments: Mapping[str, Any]) -> str:
    """A name for a variant that is legible, and a folder's on every system."""
    parts = [str(arguments["sae"]), *(f"{key}={value}" for key, value in arguments.items() if key != "sae")]
    return re.sub(r"[^\w.+=-]+", "_", ",".join(parts)).strip("._")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it. Raises `UserError` where it cannot be made or another process holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder '{folder}' cannot be made: {error.strerror}. Give another --output_path."
        ) from error
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"Another process is at work in '{folder}'. Wait for it, or give another --output_path."
        ) from None


def remember(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down what a run was asked for. Raises `UserError` where the folder holds a run that was asked otherwise."""
    file = folder / SETTINGS
    new = json.loads(json.dumps(settings, default=str))
    if not file.exists():
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(new, indent=2))
        os.replace(unfinished, file)
        return
    try:
        old = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read: {error}. Give another --output_path.") from error
    other = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if other:
        raise UserError(
            f"'{folder}' holds a run with other {', '.join(other)}: {old.get(other[0])!r} there, {new.get(other[0])!r} "
            f"here. Give another --output_path, or delete it."
        )
