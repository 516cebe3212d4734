"""The baseline and its variants on lm_eval's tasks, each written as the results folder that lm_eval writes."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import traceback
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lm_eval.errors import UserError, did_you_mean, first_line
from sae_lm_eval.folder import GROUPS, JOURNAL, LOG, PACE, held, read_json, remember, write_json
from sae_lm_eval.groups import GB, divide, memory_for_dictionaries
from sae_lm_eval.journal import DiskError, Journal
from sae_lm_eval.progress import Shown, duration, quiet
from sae_lm_eval.sweep import BASELINE, Asked, Sweep, sweep_of

if TYPE_CHECKING:
    from sae_lm_eval.comparison import Comparison

logger = logging.getLogger(f"lm_eval.{__name__}")  # below lm_eval's own, whose verbosity the user sets

# What cannot change an answer, so that a run may be continued with another.
FREE = frozenset(
    {"batch_size", "max_batch_size", "device", "verbosity", "output_path", "hf_hub_log_args", "show_config"}
)
CACHES = ("cache_requests", "rewrite_requests_cache", "delete_requests_cache")
PASSED = (
    *("tasks", "num_fewshot", "batch_size", "max_batch_size", "device", "use_cache", "limit", "samples"),
    *("check_integrity", "write_out", "system_instruction", "apply_chat_template", "fewshot_as_multiturn"),
    *("gen_kwargs", "verbosity", "predict_only", "confirm_run_unsafe_code", "metadata"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a variant: its results are in `folder`, or `failed` says why there are none."""

    name: str
    folder: Path
    failed: str | None = None


@dataclass(frozen=True)
class Finished:
    """The outcomes of a run, the baseline's first, and what this process ran of it.

    `requests` counts each request once for a pass or variant that it was answered for, `recalled` those of them that
    were answered before; `rate` is in tokens a second, None where none was run.
    """

    outcomes: tuple[Outcome, ...]
    requests: int = 0
    recalled: int = 0
    rate: float | None = None

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.failed)


def run(
    *,
    model_args: Mapping[str, Any] | str,
    variants: Sequence[str | Mapping[str, Any]],
    tasks: str | Sequence[str],
    output_path: str | Path,
    controls: Sequence[str] = (),
    categories: str | Path | Mapping[str, Any] | None = None,
    memory: float | None = None,
    mean_text: str | None = None,
    **settings: Any,
) -> Comparison:
    """Evaluate the untouched model and `variants` on lm_eval's `tasks`, and compare them question by question.

    Args:
        model_args: as for lm_eval: `{"pretrained": "gpt2"}` or `"pretrained=gpt2"`.
        variants: specs, or mappings with `sae` or `pattern` and what else an entry of a sweep file takes.
        tasks: names of tasks, groups or tags of lm_eval's.
        output_path: where the results folders go, one for each; the same call again continues what was cut short.
        controls: `none`, `zero`, `mean` or `random_error`, at the sites of each variant.
        categories: of tasks or documents, as for the command `compare`: a file or a mapping.
        memory: gigabytes for the dictionaries of one forked pass.
        mean_text: the text whose activations the mode `mean` averages.
        settings: lm_eval's own, under its names: `num_fewshot`, `limit`, `batch_size`, `device`, `gen_kwargs`, ...

    Returns the comparison of the variants with the baseline, whose `drops` are a data frame.

    Raises `UserError` for whatever the user can mend, among it a variant that failed when the others are done.
    """
    from sae_lm_eval.comparison import compare
    from sae_lm_eval.cuts import read_categories_file
    from sae_lm_eval.results import read_results
    from sae_lm_eval.sweep import lm_eval_settings

    for name in settings:
        if name not in (known := lm_eval_settings()):
            raise UserError(f"run takes no '{name}'.{did_you_mean(name, known)} lm_eval's are {', '.join(known)}.")
    chosen: Any = categories
    if isinstance(categories, str | Path):
        chosen = read_categories_file(Path(categories))
    given = {"model_args": model_args, "variants": list(variants), "controls": list(controls), "mean_text": mean_text}
    sweep = sweep_of({**given, "memory": memory, "tasks": tasks, **settings})
    finished = evaluate(sweep, lm_eval_config(sweep), Path(output_path))
    if finished.failed:
        raise UserError(
            f"{len(finished.failed)} of {len(sweep.variants)} variants failed; '{output_path}' has the others. "
            + " ".join(f"{outcome.name}: {outcome.failed}" for outcome in finished.failed)
        )
    baseline, *others = (replace(read_results(one.folder), name=one.name) for one in finished.outcomes)
    return compare(baseline, others, categories=chosen)


def lm_eval_config(sweep: Sweep) -> Any:
    """lm_eval's reading of its settings. Raises `UserError` for what it refuses."""
    from argparse import Namespace

    from lm_eval.config.evaluate_config import EvaluatorConfig

    if not sweep.settings.get("tasks"):
        raise UserError("--tasks is missing: name tasks of lm_eval's, as in --tasks blimp,lambada_openai.")
    given = {**sweep.settings, "model": "sae_hf", "model_args": dict(sweep.model_args)}
    try:
        return EvaluatorConfig.from_cli(Namespace(**given))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UserError(f"lm_eval does not take these settings: {first_line(error)}") from error


def evaluate(sweep: Sweep, settings: Any, output_path: Path) -> Finished:
    """Evaluate the untouched model and a sweep's variants in forked passes; a folder for each below `output_path`.

    `settings` is lm_eval's `EvaluatorConfig`: its tasks, limits, seeds. What a run that was cut short had finished is
    kept, and what it had answered is not run again. A variant that cannot be made is left out, with its reason.

    Raises `UserError` where the model or every variant cannot be loaded, the folder holds another run or is in use,
    and `DiskError` where it cannot be written.
    """
    asked = {"model_args": sweep.model_args, "variants": [asdict(one) for one in sweep.variants], **_fixed(settings)}
    names = (BASELINE, *(one.name for one in sweep.variants))
    with held(output_path):
        remember(output_path, asked)
        failed: dict[str, str] = {}
        done = Finished(())
        if not all((output_path / name).exists() for name in names):
            with (
                quiet(output_path / LOG) as console,
                Shown(console, len(names)) as shown,
                closing(Journal(output_path / JOURNAL)) as journal,
            ):
                failed = _Evaluation(sweep, settings, output_path, shown, journal).all()
            done = Finished((), shown.requests, shown.recalled_requests, shown.rate)
        if not failed:
            (output_path / JOURNAL).unlink(missing_ok=True)  # the folders have every answer
    return replace(done, outcomes=tuple(Outcome(name, output_path / name, failed.get(name)) for name in names))


class _Evaluation:
    def __init__(self, sweep: Sweep, settings: Any, output_path: Path, shown: Shown, journal: Journal):
        from sae_lm_eval.adapter import SaeHFLM

        self.settings, self.output_path, self.shown, self.journal = settings, output_path, shown, journal
        self.model_args, self.memory = sweep.model_args, sweep.memory
        self.asked = {one.name: one for one in sweep.variants}
        self.failed: dict[str, str] = {}
        self._loaded: dict[Hashable, Any] = {}
        shown.at("reading the tasks")
        try:
            self.task_manager = settings.process_tasks(settings.metadata)
        except ValueError as error:
            raise UserError(first_line(error)) from error
        shown.at("loading the model")
        given = {name: getattr(settings, name) for name in ("batch_size", "max_batch_size", "device")}
        make: Any = SaeHFLM  # lm_eval's decorator hides its parameters
        self.baseline: Any = make(sae=[], splice="none", **given, **sweep.model_args)
        self.baseline.progress = shown

    def all(self) -> dict[str, str]:
        """Evaluate what is not yet evaluated, a group at a time; why the variants that failed did, by name."""
        bos, groups = self._settled()
        for number, group in enumerate(groups, start=1):
            names = [*([BASELINE] if number == 1 else []), *group]
            missing = [name for name in names if not self._has(name)]
            self.shown.finished += len(names) - len(missing)
            if missing:
                self._together(f"pass {number} of {len(groups)}", group, missing, bos)
        return self.failed

    def _has(self, name: str) -> bool:
        return (self.output_path / name).exists()

    # -- which go together --------------------------------------------------------------------------------

    def _settled(self) -> tuple[bool, list[list[str]]]:
        """Whether prompts get a BOS token, and the groups; settled once, so that a run continues as it began.

        For that each dictionary is loaded and let go again. Those that fail are tried anew when the run continues.
        """
        kept = read_json(self.output_path / GROUPS) or {"bos": None, "groups": []}
        bos, groups = kept["bos"], kept["groups"]
        sizes: dict[str, dict[Hashable, int]] = {}
        wants_bos: dict[str, bool] = {}
        for name in [name for name in self.asked if not any(name in group for group in groups)]:
            self.shown.at(f"looking at {name}")
            try:
                sizes[name], wants_bos[name] = self._look(self.asked[name])
                if bos is False and wants_bos[name]:
                    raise UserError("It was trained behind a BOS token, and this run has begun without one.")
            except Exception as error:  # whatever a file of somebody else's makes a library raise
                sizes.pop(name, None)
                self._leave_out(name, error)
            self._forget()
        if not sizes and not groups:
            raise UserError(f"None of the variants could be made. {next(iter(self.failed.values()), '')}".strip())
        if sizes:
            bos = any(wants_bos[name] for name in sizes) if bos is None else bos
            budget = memory_for_dictionaries(str(self.baseline.device)) if self.memory is None else self.memory * GB
            groups = [*groups, *divide({name: sizes[name] for name in self.asked if name in sizes}, budget)]
            write_json(self.output_path / GROUPS, {"bos": bos, "groups": groups})
        return bos, groups

    def _look(self, asked: Asked) -> tuple[dict[Hashable, int], bool]:
        """The bytes of a variant's dictionaries, and whether one was trained behind a BOS token."""
        from sae_lm_eval.adapter import innermost
        from sae_lm_eval.build import build_variant

        wanted = self._wanted(asked)
        model = innermost(self.baseline.model)
        build_variant(model, wanted.dictionaries, wanted.choices, self.baseline.special_ids)
        sizes: dict[Hashable, int] = {}
        for key, dictionary in self._loaded.items():
            sizes[key] = sum(p.numel() * p.element_size() for p in dictionary.module.parameters())
        return sizes, any(dictionary.prepend_bos for dictionary in wanted.dictionaries)

    def _wanted(self, asked: Asked) -> Any:
        """As the adapter takes it, a dictionary that several variants of a group share loaded once."""
        from sae_lm_eval.arguments import dtype_of, wanted_of
        from sae_lm_eval.dictionary import load

        arguments = dict(asked.arguments)
        dtype, factor = arguments.get("sae_dtype", "float32"), arguments.pop("norm_factor", None)
        found = []
        for spec in asked.specs:
            key = (spec, dtype, factor, arguments.get("hook"))  # elsewhere it may be needed on another device
            if key not in self._loaded:
                self._loaded[key] = load(spec, dtype=dtype_of(dtype), norm_factor=factor)
            found.append(self._loaded[key])
        return wanted_of(**{**arguments, "sae": found})

    def _leave_out(self, name: str, error: Exception) -> None:
        logger.info("%s", "".join(traceback.format_exception(error)))
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        logger.error("%s is left out: %s", name, why)
        self.failed[name] = why

    def _forget(self) -> None:
        import torch

        self._loaded.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -- a group ------------------------------------------------------------------------------------------

    def _together(self, title: str, group: Sequence[str], missing: Sequence[str], bos: bool) -> None:
        from sae_lm_eval.adapter import join

        self.shown.at(f"{title}, loading {len(group)} variants")
        made: dict[str, Any] = {}
        for name in group:
            try:
                made[name] = self.baseline.as_variant(self._wanted(self.asked[name]))
            except Exception as error:  # as when they were looked at
                self._leave_out(name, error)
        join(self.baseline, list(made.values()), self.journal, bos=bos)
        before = (self.shown.asked, self.shown.tokens, self.shown.seconds)
        for name, lm in {BASELINE: self.baseline, **made}.items():
            if name not in missing:
                continue
            self.shown.at(f"{title}, {name}")
            try:
                self._evaluate(name, lm)
                self.shown.variant_done(name)
            except UserError as error:
                if name == BASELINE or isinstance(error, DiskError):
                    raise
                self._leave_out(name, error)
            if name == missing[0]:
                self._keep_pace(before, made)
        self.baseline._answers = None
        made.clear()
        self._forget()

    def _keep_pace(self, before: tuple[int, int, float], made: Mapping[str, Any]) -> None:
        """What `--plan` estimates the rest by."""
        from sae_lm_eval.adapter import innermost
        from sae_lm_eval.planning import cost_of

        asked, tokens, seconds = before
        ran, took = self.shown.tokens - tokens, self.shown.seconds - seconds
        if ran and took:
            cost = cost_of(innermost(self.baseline.model), [lm.variant for lm in made.values()])
            pace = {"tokens": self.shown.asked - asked, "token_passes_per_second": ran / took * cost}
            write_json(self.output_path / PACE, pace)

    def _evaluate(self, name: str, lm: Any) -> None:
        import lm_eval
        from lm_eval.loggers import EvaluationTracker

        s = self.settings
        unfinished = self.output_path / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        tracker = EvaluationTracker(output_path=str(unfinished), **s.hf_hub_log_args)
        seeds = dict(
            zip(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), s.seed, strict=True)
        )
        arguments = {"splice": "none"} if name == BASELINE else self.asked[name].arguments
        run_lm_eval: Any = lm_eval.simple_evaluate  # its decorator hides its parameters
        results = run_lm_eval(
            model=lm,
            model_args={**self.model_args, **arguments},
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
        if name != BASELINE and self.asked[name].control_of:
            results["config"]["sae_lm_eval"]["control_of"] = list(self.asked[name].control_of)
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        check_written(unfinished, {task: len(samples[task]) for task in results["configs"]})
        os.replace(unfinished, self.output_path / name)


def check_written(folder: Path, lines: Mapping[str, int]) -> None:
    """Raise `DiskError` unless the results and so many samples of each task are there: lm_eval only logs a failure."""
    try:
        (results,) = folder.glob("*/results_*.json")
        json.loads(results.read_text(encoding="utf-8"))
        for task, expected in lines.items():
            (samples,) = folder.glob(f"*/samples_{task}_[0-9]*.jsonl")
            whole = [line for line in samples.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
            if len(whole) != expected:
                raise ValueError(f"{len(whole)} of {expected} samples of {task}")
    except (OSError, ValueError) as error:
        free = shutil.disk_usage(folder.parent).free / GB
        raise DiskError(
            f"The results of '{folder.name[1:]}' were not written whole ({first_line(error)}; {free:.1f} GB are free "
            f"on the disk). Free some space; the same command continues."
        ) from error


def _fixed(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name not in FREE and name != "model_args"}


def summary(finished: Finished, seconds: float) -> str:
    """What a run did, in a sentence or two."""
    done = len(finished.outcomes) - len(finished.failed)
    text = f"{done} of {len(finished.outcomes)} models done (the baseline and {len(finished.outcomes) - 1} variants)"
    if not finished.requests:
        return f"{text}; nothing was left to run."
    text += f" in {duration(seconds)}: {finished.requests:,} answers, {finished.recalled:,} of them recalled"
    return f"{text}; {finished.rate:,.0f} tokens a second." if finished.rate else f"{text}."
