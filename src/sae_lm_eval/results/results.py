"""A folder that lm_eval wrote -> its scores, and the documents behind them. Neither torch nor lm_eval."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import printable, terminal
from sae_lm_eval.files.reading import checked, is_file, is_folder, json_value, read_json, read_lines, shown
from sae_lm_eval.results.digests import check_digest
from sae_lm_eval.results.lm_eval_files import ResultsFile, SaeEntry, Sample, TaskConfig, TaskScores
from sae_lm_eval.results.variant_names import variant_name
from sae_lm_eval.schema import version_of

# Asked for by pairing and scoring; prompts and answers as text would take most of the memory.
KEPT = ("doc_id", "doc", "target", "filtered_resps", "filter", "doc_hash", "prompt_hash", "target_hash")
CHANCE = "chance (probability)"  # a column that samples may have besides, of guessing right; no metric is called so
# Each line of lm_eval's begins with it, so that a document is found without reading the others as JSON.
DOC_ID = re.compile(r'\{"doc_id": (\d{1,18}),')


SAMPLE, RESULTS = "a sample of lm_eval's", "a results file of lm_eval's"
NOTHING_WRITTEN = TaskConfig()


@dataclass(frozen=True, eq=False, repr=False)
class Results:
    """One run of lm_eval's, whatever the model.

    `tasks` are what was asked, in lm_eval's order; `scores` lm_eval's numbers by task or group and then by
    "metric,filter", None for what is none; `aliases` what lm_eval's tables call them; `sizes` how many documents of
    each task a group's mean counts, `documents` how many were asked; `groups` the members (tasks, or groups again) of
    each group; `raw` is the whole file; `notes` is what a reader should know of its choice; `docs_by` names a field of
    the documents that belong together, None where each stands by itself; `command` makes the results again, where it is
    not lm_eval's.
    """

    file: Path
    name: str
    tasks: list[str]
    config: dict[str, Any]
    provenance: dict[str, Any]
    scores: dict[str, dict[str, float | None]]
    aliases: dict[str, str]
    sizes: dict[str, int]
    documents: dict[str, int]
    groups: dict[str, list[str]]
    n_shot: dict[str, int]
    versions: dict[str, Any]
    higher_is_better: dict[str, dict[str, bool | None]]
    task_configs: dict[str, TaskConfig]
    raw: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()
    docs_by: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        # Folders and tasks of somebody else's may be called anything; where names are shown they move nothing.
        object.__setattr__(self, "name", terminal(self.name))
        object.__setattr__(self, "aliases", {name: printable(alias) for name, alias in self.aliases.items()})

    def __repr__(self) -> str:
        return f"<Results of {self.name} on {len(self.tasks)} tasks, '{terminal(self.file)}'>"

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def model_args(self) -> dict[str, Any]:
        """The arguments of the model by name."""
        return self.config["model_args"]

    def score(self, name: str, key: str) -> float:
        """lm_eval's number of a task or group; nan for what is none."""
        value = self.scores[name][key]
        return math.nan if value is None else value

    def task_config(self, task: str) -> TaskConfig:
        """What lm_eval wrote of a task; without fields where it wrote nothing."""
        return self.task_configs.get(task, NOTHING_WRITTEN)

    @property
    def fidelity_tasks(self) -> list[str]:
        """The tasks that measured fidelity: those with the CE of the baseline on a text."""
        return [task for task, scores in self.scores.items() if "ce_baseline,none" in scores]

    def without_fidelity(self) -> Results:
        """The results less those tasks: each measures within one run, so there is nothing to pair with the baseline."""
        measured = self.fidelity_tasks
        scores = {task: values for task, values in self.scores.items() if task not in measured}
        groups = {group: [task for task in members if task not in measured] for group, members in self.groups.items()}
        tasks = [task for task in self.tasks if task not in measured]
        return replace(self, scores=scores, groups=groups, tasks=tasks)

    def samples(self, task: str) -> pd.DataFrame:
        """A row for each document and filter of a task: `KEPT`, the continuations asked for, and a column a metric.

        Raises `UserError` where lm_eval wrote none, or what cannot be read.
        """
        file = self._samples_file(task)
        rows = []
        for sample in self._read(file):
            given = sample.as_given()
            kept = {name: given[name] for name in KEPT}
            kept["continuations"] = [request.get("arg_1") for request in sample.arguments.values()]
            rows.append({**kept, **{name: given[name] for name in sample.metrics}})
        if not rows:
            raise UserError(f"'{file}' holds no documents. Rerun lm_eval with --log_samples.")
        return pd.DataFrame(rows)

    def whole_samples(self, task: str, doc_ids: Container[int] | None = None) -> Iterator[dict[str, Any]]:
        """The samples of some documents (None: of all) as lm_eval wrote them; other lines are not even decoded."""
        for sample in self._read(self._samples_file(task), doc_ids):
            if doc_ids is None or sample.doc_id in doc_ids:
                yield sample.as_given()

    @staticmethod
    def _read(file: Path, doc_ids: Container[int] | None = None) -> Iterator[Sample]:
        for number, line in enumerate(read_lines(file), 1):
            start = DOC_ID.match(line)
            if doc_ids is None or start is None or int(start[1]) in doc_ids:
                where = f"Line {number} of '{file}'"
                try:
                    yield checked(Sample, json_value(line, where), where, SAMPLE)
                except UserError as error:
                    cut = "The file may be cut short; rerun lm_eval with --log_samples."
                    raise UserError(f"{error} {cut}") from error

    def _samples_file(self, task: str) -> Path:
        stamp = self.file.stem.rpartition("_")[2]
        file = self.folder / f"samples_{task}_{stamp}.jsonl"
        if not file.is_file():
            raise UserError(
                f"The answers of {self.name} to {task} are missing: there is no {file.name} in '{self.folder}'. "
                f"Rerun lm_eval with --log_samples and --output_path."
            )
        check_digest(file)
        return file


def read_results(path: str | Path) -> Results:
    """The newest run under a folder that was given as --output_path, its inner folder, or a results_*.json itself.

    Raises `UserError` where there is none, or what cannot be read.
    """
    path = Path(path)
    file, notes = (path, ()) if is_file(path) else _newest(path)
    where = f"'{shown(file, 200)}'"
    check_digest(file)
    content = read_json(file, dict[str, Any], RESULTS)
    ours = content["config"].get("sae_lm_eval") if isinstance(content.get("config"), dict) else None
    if isinstance(ours, dict):
        version_of(ours, str(file))  # a newer one may have other fields
    parsed = checked(ResultsFile, content, where, RESULTS)
    scored = {
        name: checked(TaskScores, entry, f"{where}, results.{shown(name)},", RESULTS)
        for name, entry in parsed.results.items()
    }
    tasks = [name for name in parsed.results if name in parsed.n_samples]
    names = {*tasks, *parsed.group_subtasks}
    groups = {
        group: [member for member in members if member in names] for group, members in parsed.group_subtasks.items()
    }
    config = {**parsed.config.as_given(), "model_args": _by_name(parsed.config.model_args)}
    config["sae_lm_eval"] = parsed.config.sae_lm_eval.as_given()
    return Results(
        file=file,
        name=_name(parsed),
        tasks=tasks,
        config=config,
        provenance=config["sae_lm_eval"],
        scores={name: task.scores for name, task in scored.items()},
        aliases={name: task.alias for name, task in scored.items() if task.alias is not None},
        sizes={name: scored[name].sample_len or parsed.n_samples[name].effective for name in tasks},
        documents={name: parsed.n_samples[name].effective for name in tasks},
        groups={group: members for group, members in groups.items() if members},
        n_shot={name: shots for name, shots in parsed.n_shot.items() if isinstance(shots, int)},
        versions=parsed.versions,
        higher_is_better=parsed.higher_is_better,
        task_configs=parsed.configs,
        raw=parsed.as_given(),
        notes=notes,
    )


def _by_name(given: dict[str, Any] | str) -> dict[str, Any]:
    """lm_eval has written them as text and as a mapping."""
    if isinstance(given, dict):
        return given
    parts = [part.partition("=") for part in given.split(",") if part]
    return {key: value for key, _, value in parts}


def _newest(folder: Path) -> tuple[Path, tuple[str, ...]]:
    if not is_folder(folder):
        raise UserError(
            f"There is no '{shown(folder, 200)}'. Name a folder that was given to lm_eval as --output_path."
        )
    files = sorted((*folder.glob("results_*.json"), *folder.glob("*/results_*.json")), key=lambda file: file.stem)
    if not files:
        raise UserError(
            f"'{folder}' holds no results_*.json, nor does a folder directly in it. "
            f"Name a folder that was given to lm_eval as --output_path."
        )
    if len(files) == 1:
        return files[0], ()
    return files[-1], (f"'{folder}' holds {len(files)} runs; the newest is taken: {files[-1].relative_to(folder)}.",)


def _name(parsed: ResultsFile) -> str:
    """The variant's name as sae_hf tells it, or the model's."""
    record: SaeEntry = parsed.config.sae_lm_eval
    if record.splices or record.edit or record.adapter:
        edited = [] if record.edit is None else [record.edit.name]
        edited += [] if record.adapter is None else [f"peft={record.adapter.name}"]
        names = [*(splice.dictionary for splice in record.splices), *edited]
        return variant_name(names, record.splice, record.scale)
    named = _by_name(parsed.config.model_args).get("pretrained")
    return str(parsed.model_name or named or parsed.config.model or "unnamed")
