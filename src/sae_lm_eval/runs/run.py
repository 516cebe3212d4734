"""The baseline and its variants on lm_eval's tasks, each written as the results folder that lm_eval writes."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lm_eval.errors import UserError, did_you_mean, error_sentence
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.files.reading import at_home
from sae_lm_eval.runs.additions import with_earlier
from sae_lm_eval.runs.checks import check
from sae_lm_eval.runs.documents import keep_documents
from sae_lm_eval.runs.finished import finish, set_damaged_aside
from sae_lm_eval.runs.folder_names import AGAIN, BASELINE
from sae_lm_eval.runs.grouping import GB, divide, memory_for_dictionaries
from sae_lm_eval.runs.identity_record import IdentityRecord, digest_of, model_record
from sae_lm_eval.runs.kept_pace import counts_of, keep_pace
from sae_lm_eval.runs.model_pool import LoadedSweep, Look, UnknownModel
from sae_lm_eval.runs.object_names import object_texts
from sae_lm_eval.runs.outcome import Finished, Outcome, comparison_of, ran_by_all, refuse_failed
from sae_lm_eval.runs.settings import fixed_settings, lm_eval_config
from sae_lm_eval.runs.several_models import lists_models, run_each, sweeps_of, transfer_of
from sae_lm_eval.runs.sweep import Sweep, sweep_of
from sae_lm_eval.runs.turns import kinds_of, turns
from sae_lm_eval.runtime.host_memory import HostMemoryError, raise_if_out_of_memory
from sae_lm_eval.runtime.journal import DiskError, Journal
from sae_lm_eval.runtime.processes import agreed, gathered, is_distributed, rank
from sae_lm_eval.runtime.progress import ConsoleProgress, quiet
from sae_lm_eval.runtime.run_files import GROUPS, read_groups
from sae_lm_eval.runtime.run_folder import (
    LOG,
    check_written,
    delete_journals,
    held,
    journal_of,
    remembered,
    write_json,
)

if TYPE_CHECKING:
    from sae_lm_eval.report.findings import Findings
    from sae_lm_eval.report.transfer import Transfer

logger = logger_of(__name__)


def run(
    *,
    model_args: Mapping[str, Any] | str,
    variants: Any,
    tasks: str | Sequence[str],
    output_path: str | Path,
    controls: str | Sequence[str] = (),
    categories: str | Path | Mapping[str, Any] | None = None,
    memory: float | None = None,
    mean_text: str | None = None,
    ray: str | None = None,
    docs_by: str | None = None,
    **settings: Any,
) -> Findings | Transfer:
    """Evaluate the untouched model and `variants` on lm_eval's `tasks`, and compare them question by question.

    Args:
        model_args: as for lm_eval: `{"pretrained": "gpt2"}` or `"pretrained=gpt2"`; model and tokenizer may be objects.
            A list of models, or `revision` as a list, is a run for each, in a folder of its own.
        variants: specs, objects that `sae=` takes, or mappings with `sae` or `pattern` and what else an entry of a
            sweep file takes.
        tasks: names of tasks, groups or tags of lm_eval's.
        output_path: where the results folders go, one for each; the same call again continues what was cut short.
        controls: `none`, `zero`, `mean` or `random_error`, at the sites of each variant; `prune`, `lowrank`, `quantize`
            or `noise` of the model's weights as a ruler; and `baseline_again`, for the noise floor.
        categories: of tasks or documents, as for the command `compare`: a file or a mapping.
        memory: gigabytes for the dictionaries of one forked pass.
        mean_text: the text whose activations the mode `mean` averages.
        ray: the address of a Ray cluster that shares the work, or "local" for one on this machine.
        docs_by: a field of the documents, such as a passage, as for `compare`.
        settings: lm_eval's own, under its names: `num_fewshot`, `limit`, `batch_size`, `device`, `gen_kwargs`, ...

    Returns the comparison of the variants with the baseline, whose `drops` are a data frame; of several models a
    `Transfer`, which holds one for each.

    Raises `UserError` for whatever the user can mend, among it a variant that failed when the others are done.
    """
    from sae_lm_eval.runs.sweep_keys import lm_eval_settings

    for name in settings:
        if name not in (names := lm_eval_settings()):
            raise UserError(f"run takes no '{name}'.{did_you_mean(name, names)} lm_eval's are {', '.join(names)}.")
    given = {"model_args": model_args, "variants": variants, "controls": controls, "mean_text": mean_text}
    given |= {"categories": categories, "docs_by": docs_by}
    given |= {"memory": memory, "ray": ray, "tasks": tasks, **settings}
    output_path = at_home(output_path)
    if lists_models(model_args):
        sweeps = sweeps_of(given)
        return transfer_of(sweeps, run_each(sweeps, output_path, _evaluated, logger.warning), output_path)
    sweep = sweep_of(given)
    check(sweep, output_path)
    finished = _evaluated(sweep, output_path)
    refuse_failed(finished, output_path)
    return comparison_of(finished, output_path, categories=sweep.categories, docs_by=sweep.docs_by)


def _evaluated(sweep: Sweep, output_path: Path) -> Finished:
    return evaluate(sweep, lm_eval_config(sweep), output_path)


def evaluate(sweep: Sweep, settings: Any, output_path: Path) -> Finished:
    """Evaluate the untouched model and a sweep's variants in forked passes; a folder for each below `output_path`.

    Variants that a run in the folder has besides stay in it, and are among the outcomes.
    `settings` is lm_eval's `EvaluatorConfig`: its tasks, limits, seeds. What a run that was cut short had finished is
    kept, and what it had answered is not run again. A variant that cannot be made is left out, with its reason.
    Several processes share the requests of a run, and a Ray cluster the passes.

    Raises `UserError` where the model or every variant cannot be loaded, the folder holds another run or is in use,
    and `DiskError` where it cannot be written.
    """
    if sweep.ray is not None and is_distributed():
        raise UserError("--ray starts workers of its own: leave out accelerate launch, or --ray.")
    with ExitStack() as scope:
        agreed(lambda: scope.enter_context(held(output_path)))
        sweep = with_earlier(sweep, output_path)
        variants = [request.record for request in sweep.variants]
        record = {"model_args": object_texts(sweep.model_args), "variants": variants}
        record |= fixed_settings(settings)
        record |= {"once": list(sweep.once)} if sweep.once else {}
        names = (BASELINE, *(request.name for request in sweep.variants), *sweep.once)
        scope.enter_context(remembered(output_path, record, names))
        failed: dict[str, str] = {}
        done = Finished(())
        console = scope.enter_context(quiet(output_path / LOG, aloud=rank() == 0))
        agreed(lambda: set_damaged_aside(output_path, names))
        finished = agreed(lambda: all((output_path / name).exists() for name in names))
        continued = (output_path / journal_of(rank())).exists()
        with (
            ConsoleProgress(console, len(names)) as shown,
            closing(Journal(None if finished else output_path / journal_of(rank()))) as journal,
        ):
            try:
                failed = _Evaluation(sweep, settings, output_path, shown, journal, to_run=not finished).all()
            except UnknownModel as error:
                if not finished:
                    raise
                logger.warning("Whether the results are still those of this model cannot be told: %s", error)
        done = replace(ran_by_all(shown), continued=continued)
        if not failed:
            agreed(lambda: delete_journals(output_path))  # the folders have every answer
    return replace(done, outcomes=tuple(Outcome(name, output_path / name, failed.get(name)) for name in names))


class _Evaluation:
    def __init__(
        self, sweep: Sweep, settings: Any, output_path: Path, shown: ConsoleProgress, journal: Journal, *, to_run=True
    ):
        self.sweep, self.output_path, self.shown, self.journal = sweep, output_path, shown, journal
        self.failed: dict[str, str] = {}
        self._looked: set[str] = set()
        self.loaded = LoadedSweep(sweep, settings, shown.at, to_run=to_run)

    def all(self) -> dict[str, str]:
        """Evaluate what is not yet evaluated, a group at a time; why the variants that failed did, by name."""
        alone = False, [[]], {}  # the untouched model, as a member of a family
        bos, groups, self.failed = agreed(self._settled) if self.loaded.variants else alone
        if self.sweep.ray is not None:
            self._spread(bos, groups)
        missing_of = [self._missing(self._names(number, group)) for number, group in enumerate(groups, start=1)]
        if left := turns(missing_of, self._missing(self.sweep.once)):
            self.shown.time_left.schedule(left, kinds_of(self.loaded.tasks["tasks"].values()))
        for number, group in enumerate(groups, start=1):
            missing = missing_of[number - 1]
            self.shown.found_finished(len(self._names(number, group)) - len(missing))
            if missing:
                title = f"pass {number} of {len(groups)}, " if len(groups) > 1 else ""
                self._together(title, group, missing, bos)
        if self.sweep.once and self._missing([AGAIN]):
            self._once_more(bos)
        return self.failed

    def _once_more(self, bos: bool) -> None:
        """The baseline in another layout, and how far its predictions move by that."""
        from sae_lm_eval.runs.noise import again, floor_on_tasks

        self.shown.turn("", AGAIN)
        lm = again(self.loaded.baseline, bos)
        self._evaluate(AGAIN, lm, noise_floor=floor_on_tasks(lm, self.loaded))
        self.shown.variant_done(AGAIN)

    def _names(self, number: int, group: Sequence[str]) -> list[str]:
        return [*([BASELINE] if number == 1 else []), *group]

    def _missing(self, names: Sequence[str]) -> list[str]:
        return agreed(lambda: [name for name in names if not (self.output_path / name).exists()])

    # -- which go together --------------------------------------------------------------------------------

    def _settled(self) -> tuple[bool, list[list[str]], dict[str, str]]:
        """Whether prompts get a BOS token, the groups, and what failed; settled once, so that a run continues so.

        For that each dictionary is loaded and let go again, and compared with what the folder's results were made of.
        Those that fail are tried anew when the run continues.
        """
        kept = read_groups(self.output_path)
        bos, groups = (None, []) if kept is None else (kept.bos, kept.groups)
        settled = {name for group in groups for name in group}
        finished = {
            name for name in (BASELINE, *self.loaded.variants, *self.sweep.once) if (self.output_path / name).exists()
        }
        record = IdentityRecord(self.output_path, finished, begun=kept is not None)
        looks = {name: look for name in self.loaded.variants if (look := self._look(name, bos, settled, finished))}
        record.compare(model_record(self.loaded.baseline.spliced), {name: look.record for name, look in looks.items()})
        sizes = {name: look.sizes for name, look in looks.items() if name not in settled}
        if bos is None and not sizes:
            raise UserError(
                f"None of the variants could be made. {' '.join(dict.fromkeys(self.failed.values()))}".strip()
            )
        for name, why in self.failed.items():
            self._leave_out(name, why)
        if sizes:
            bos = any(looks[name].wants_bos for name in sizes) if bos is None else bool(bos)
            memory, device = self.sweep.memory, str(self.loaded.baseline.device)
            budget = memory_for_dictionaries(device) if memory is None else memory * GB
            groups = [*groups, *divide(sizes, budget)]
            write_json(self.output_path / GROUPS, {"bos": bos, "groups": groups})
        return bool(bos), groups, self.failed

    def _look(self, name: str, bos: bool | None, settled: Collection[str], finished: Collection[str]) -> Look | None:
        """What is to be known of a variant, None where it cannot be made."""
        self.shown.at(f"looking at {name}")
        try:
            look = self.loaded.look(name)
            if bos is False and look.wants_bos and name not in settled:
                raise UserError("It was trained behind a BOS token, and this run has begun without one.")
            self._looked.add(name)
            return look
        except Exception as error:  # whatever a file of somebody else's makes a library raise
            raise_if_out_of_memory(error)
            if name in finished:
                logger.warning("Whether '%s' is still what was evaluated cannot be told: %s", name, _why(error))
            else:
                self.failed[name] = _why(error)
            return None
        finally:
            self.loaded.forget()

    def _leave_out(self, name: str, why: str) -> None:
        logger.error("%s is left out: %s", name, why)
        self.failed[name] = why

    # -- a group ------------------------------------------------------------------------------------------

    def _spread(self, bos: bool, groups: Sequence[Sequence[str]]) -> None:
        """Have a cluster answer what is not yet answered: it is all in the journal then."""
        from sae_lm_eval.runs.ray_cluster import Part, run_on_cluster

        assert self.sweep.ray is not None
        self.shown.at("looking at the tasks")
        parts = []
        for number, group in enumerate(groups, start=1):
            if missing := self._missing(self._names(number, group)):
                sound = tuple(name for name in group if self._is_sound(name))
                made_of = digest_of(self.output_path, sound)
                parts += [Part(sound, tuple(missing), task, bos, made_of) for task in self.loaded.tasks["tasks"]]
        run_on_cluster(self.sweep.ray, self.sweep, parts, self.journal, self.shown)

    def _is_sound(self, name: str) -> bool:
        """Whether a variant can be made; those that an earlier process settled are looked at again."""
        if name not in self._looked and name not in self.failed:
            try:
                self.loaded.look(name)
            except Exception as error:  # as when they were settled
                raise_if_out_of_memory(error)
                self._leave_out(name, _why(error))
            self.loaded.forget()
        return name not in self.failed

    def _together(self, title: str, group: Sequence[str], missing: Sequence[str], bos: bool) -> None:
        self._evaluate_each(title, group, missing, bos)
        self.loaded.forget()  # now that nothing else holds what was made

    def _evaluate_each(self, title: str, group: Sequence[str], missing: Sequence[str], bos: bool) -> None:
        self.shown.at(f"{title}loading {len(group)} variants")
        models = self.loaded.joined(self._models(group), self.journal, bos, self.shown)
        before = counts_of(self.shown)
        for name, lm in models.items():
            if name not in missing:
                continue
            self.shown.turn(title, name)
            try:
                self._evaluate(name, lm)
                self.shown.variant_done(name)
            except UserError as error:
                # Other processes would wait for this one, which has gone on.
                if name == BASELINE or isinstance(error, DiskError | HostMemoryError) or is_distributed():
                    raise
                self._leave_out(name, _why(error))
            if name == missing[0] and rank() == 0:
                variants = [model.spliced.variant for other, model in models.items() if other != BASELINE]
                keep_pace(self.output_path, self.loaded.baseline.loaded.model, variants, before, counts_of(self.shown))

    def _models(self, group: Sequence[str]) -> dict[str, Any]:
        """The variants of a group that every process can make."""
        models: dict[str, Any] = {}
        failed: list[tuple[str, str]] = []
        for name in [name for name in group if name not in self.failed]:
            try:
                models[name] = self.loaded.variant(name)
            except Exception as error:  # as when they were looked at
                raise_if_out_of_memory(error)
                failed.append((name, _why(error)))
        for name, why in dict(gathered(failed)).items():
            models.pop(name, None)
            self._leave_out(name, why)
        return models

    def _evaluate(self, name: str, lm: Any, **provenance: Any) -> None:
        from lm_eval.loggers import EvaluationTracker

        unfinished = self.output_path / f".{name}"
        agreed(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        tracker = EvaluationTracker(output_path=str(unfinished), **self.loaded.settings.hf_hub_log_args)
        results = self.loaded.evaluate(name, lm, evaluation_tracker=tracker)
        if results is None:  # another process of several gathers and writes
            return
        samples = results.pop("samples")
        results["config"]["model"] = "sae_hf"
        results["config"]["sae_lm_eval"].update(provenance)
        if name in self.loaded.variants and self.loaded.variants[name].control_of:
            results["config"]["sae_lm_eval"]["control_of"] = list(self.loaded.variants[name].control_of)
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
        check_written(unfinished, {task: len(samples[task]) for task in results["configs"]})
        self.shown.at(f"{name}: its documents")
        keep_documents(unfinished, lm, None if name == BASELINE else self.output_path / BASELINE)
        finish(unfinished, self.output_path / name)


def _why(error: Exception) -> str:
    """In a sentence; the log has the whole of it."""
    logger.info("%s", "".join(traceback.format_exception(error)))
    return error_sentence(error)
