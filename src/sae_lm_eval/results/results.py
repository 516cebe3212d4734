"""A folder that lm_eval wrote -> its scores, and the documents behind them. Neither torch nor lm_eval."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.schema import version_of

# Asked for by pairing and scoring; prompts and answers as text would take most of the memory.
KEPT = ("doc_id", "doc", "target", "filtered_resps", "filter", "doc_hash", "prompt_hash", "target_hash")
# Each line of lm_eval's begins with it, so that a document is found without reading the others as JSON.
DOC_ID = re.compile(r'\{"doc_id": (\d+),')


@dataclass(frozen=True, eq=False)
class Results:
    """One run of lm_eval's, whatever the model.

    `tasks` are what was asked, in lm_eval's order; `scores` lm_eval's numbers by task or group and then by
    "metric,filter"; `groups` the members (tasks, or groups again) of each group; `raw` is the whole file; `notes` is
    what a reader should know of its choice.
    """

    file: Path
    name: str
    tasks: list[str]
    config: dict[str, Any]
    scores: dict[str, dict[str, Any]]
    groups: dict[str, list[str]]
    n_shot: dict[str, int]
    versions: dict[str, Any]
    higher_is_better: dict[str, dict[str, bool | None]]
    raw: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def provenance(self) -> dict[str, Any]:
        """What sae_hf recorded of its splices; empty for other models."""
        return self.config.get("sae_lm_eval") or {}

    @property
    def model_args(self) -> dict[str, Any]:
        """The arguments of the model by name; lm_eval has written them as text and as a mapping."""
        given = self.config.get("model_args") or {}
        if isinstance(given, dict):
            return given
        parts = [part.partition("=") for part in str(given).split(",") if part]
        return {key: value for key, _, value in parts}

    @property
    def fidelity_tasks(self) -> list[str]:
        """The tasks that measured fidelity: those with the CE of the baseline on a text."""
        return [task for task, scores in self.scores.items() if "ce_baseline,none" in scores]

    def without_fidelity(self) -> Results:
        """The results less those tasks: each measures within one run, so there is nothing to pair with the baseline."""
        measured = self.fidelity_tasks
        scores = {task: of for task, of in self.scores.items() if task not in measured}
        groups = {group: [task for task in of if task not in measured] for group, of in self.groups.items()}
        tasks = [task for task in self.tasks if task not in measured]
        return replace(self, scores=scores, groups=groups, tasks=tasks)

    def samples(self, task: str) -> pd.DataFrame:
        """A row for each document and filter of a task: `KEPT`, the continuations asked for, and a column a metric.

        Raises `UserError` where lm_eval wrote none, or what cannot be read.
        """
        file, rows = self._samples_file(task), []
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    sample = json.loads(line)
                    kept = {name: sample[name] for name in KEPT}
                    kept["continuations"] = [request.get("arg_1") for request in sample["arguments"].values()]
                    rows.append({**kept, **{name: sample[name] for name in sample["metrics"]}})
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(
                        f"Line {number} of '{file}' is no sample of lm_eval's ({type(error).__name__}: "
                        f"{first_line(error)}). The file may be cut short; rerun lm_eval with --log_samples."
                    ) from error
        if not rows:
            raise UserError(f"'{file}' holds no documents. Rerun lm_eval with --log_samples.")
        return pd.DataFrame(rows)

    def whole_samples(self, task: str, doc_ids: Container[int] | None = None) -> Iterator[dict[str, Any]]:
        """The samples of some documents (None: of all) as lm_eval wrote them; other lines are not even decoded."""
        with self._samples_file(task).open(encoding="utf-8") as lines:
            for line in lines:
                start = DOC_ID.match(line)
                if doc_ids is None or start is None or int(start[1]) in doc_ids:
                    sample = json.loads(line)
                    if doc_ids is None or sample["doc_id"] in doc_ids:
                        yield sample

    def _samples_file(self, task: str) -> Path:
        stamp = self.file.stem.rpartition("_")[2]
        file = self.folder / f"samples_{task}_{stamp}.jsonl"
        if not file.is_file():
            raise UserError(
                f"The answers of {self.name} to {task} are missing: there is no {file.name} in '{self.folder}'. "
                f"Rerun lm_eval with --log_samples and --output_path."
            )
        return file


def read_results(path: str | Path) -> Results:
    """The newest run under a folder that was given as --output_path, its inner folder, or a results_*.json itself.

    Raises `UserError` where there is none, or what cannot be read.
    """
    path = Path(path)
    file, notes = (path, ()) if path.is_file() else _newest(path)
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        ours = (raw.get("config") or {}).get("sae_lm_eval") or {}
        version_of(ours, str(file))
        return Results(
            file=file,
            name=_name(raw),
            tasks=[name for name in raw["results"] if name in raw["n-samples"]],
            config=raw.get("config") or {},
            scores=raw["results"],
            groups={group: list(members) for group, members in raw.get("group_subtasks", {}).items() if members},
            n_shot=raw["n-shot"],
            versions=raw["versions"],
            higher_is_better=raw["higher_is_better"],
            raw=raw,
            notes=notes,
        )
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read as JSON: {first_line(error)}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{file}' is not a results file of lm_eval's: {first_line(error)} is missing.") from error


def _newest(folder: Path) -> tuple[Path, tuple[str, ...]]:
    if not folder.is_dir():
        raise UserError(f"There is no '{folder}'. Name a folder that was given to lm_eval as --output_path.")
    found = sorted((*folder.glob("results_*.json"), *folder.glob("*/results_*.json")), key=lambda file: file.stem)
    if not found:
        raise UserError(
            f"'{folder}' holds no results_*.json, nor does a folder directly in it. "
            f"Name a folder that was given to lm_eval as --output_path."
        )
    if len(found) == 1:
        return found[0], ()
    return found[-1], (f"'{folder}' holds {len(found)} runs; the newest is taken: {found[-1].relative_to(folder)}.",)


def _name(raw: dict[str, Any]) -> str:
    """The variant's name as sae_hf tells it, or the model's."""
    config = raw.get("config") or {}
    provenance = config.get("sae_lm_eval") or {}
    if provenance.get("splices"):
        names = "+".join(str(splice["dictionary"]) for splice in provenance["splices"])
        mode = provenance.get("splice")
        return names if mode in (None, "reconstruction") else f"{names} ({mode})"
    named = re.search(r"(?:^|,)pretrained=([^,]+)", str(config.get("model_args")))
    return str(raw.get("model_name") or (named and named[1]) or config.get("model") or "unnamed")
