"""Where a variant's errors cost what it lost: its tasks once more, with the error of each class of places put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sae_lm_eval import schema
from sae_lm_eval.comparison.subsets import Cut, leaves
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import for_spreadsheets
from sae_lm_eval.report.question_page import question_page
from sae_lm_eval.report.where_records import FOLDER
from sae_lm_eval.runs.asked_documents import documents_asked
from sae_lm_eval.runs.asked_tasks import AskedTask, asked_tasks, check_asked
from sae_lm_eval.runs.folder_names import BASELINE
from sae_lm_eval.runs.identity_record import model_record
from sae_lm_eval.runs.inquiry import Inquiry
from sae_lm_eval.runs.model_pool import LoadedSweep
from sae_lm_eval.runs.sweep import Sweep
from sae_lm_eval.runs.where_rows import Explained
from sae_lm_eval.runs.where_variant import VariantInquiry, explained
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.placed_files import place_files, refuse_linked
from sae_lm_eval.runtime.processes import is_distributed
from sae_lm_eval.runtime.progress import ConsoleProgress, quiet
from sae_lm_eval.runtime.run_folder import LOG, held, journal_of, write_json


def explain_drops(sweep: Sweep, settings: Any, output_path: Path, question: Inquiry) -> list[Explained]:
    """Explain each variant of a sweep; its record and its documents are written to `output_path`/where.

    Answers are kept there, so that the same command again continues. Raises `UserError` for what cannot be explained.
    """
    if is_distributed() or sweep.ray is not None:
        raise UserError("where runs in one process: leave out accelerate launch and --ray.")
    folder, out = output_path / FOLDER, []
    refuse_linked(folder, "Remove it, or give another --output_path.")
    with (
        held(folder),
        quiet(folder / LOG) as console,
        ConsoleProgress(console, len(sweep.variants)) as shown,
        closing(Journal(folder / journal_of())) as journal,
    ):
        loaded = LoadedSweep(sweep, settings, shown.at, check=partial(_check_tasks, question, settings))
        for request in sweep.variants:
            shown.at(f"loading {request.name}")
            bos = loaded.look(request.name).wants_bos
            models = loaded.joined({request.name: loaded.variant(request.name)}, journal, bos)
            shown.at("reading the tasks")
            tasks = asked_tasks(loaded, models[BASELINE])

            def tell(count: int, total: int, name: str = request.name) -> None:
                shown.at(f"{name}: {count:,} of {total:,} answers")

            cuts = _cuts(loaded, tasks)
            spliced = models[request.name].spliced
            explanation = explained(VariantInquiry(request.name, spliced, tasks, cuts, question, journal, tell))
            explanation = replace(explanation, facts={**_run_facts(sweep, loaded, tasks), **explanation.facts})
            explanation = explanation.with_rows(cuts, question.level)
            record = explanation.record()
            _write_beside(folder, explanation, record)
            write_json(folder / f"{request.name}.json", {schema.KEY: schema.VERSION, **record})
            out.append(explanation)
            loaded.forget()
    return out


def _write_beside(folder: Path, explanation: Explained, record: Mapping[str, Any]) -> None:
    """Write the documents and the page of questions; without questions an earlier page goes."""
    contents = {f"{explanation.name}.documents.csv": for_spreadsheets(explanation.documents()).to_csv(index=False)}
    page = f"{explanation.name}.html"
    if record.get("questions"):
        contents[page] = question_page(record)
    encoded = {name: content.encode() for name, content in contents.items()}
    place_files(encoded, folder, what="What the record leads to", otherwise="Give another --output_path.")
    if page not in contents:
        (folder / page).unlink(missing_ok=True)


def _run_facts(sweep: Sweep, loaded: LoadedSweep, tasks: Sequence[AskedTask]) -> dict[str, Any]:
    """Which model was asked which tasks with which prompts, so that a report takes no record for one of its own run."""
    return {
        "model_args": {key: str(value) for key, value in sweep.model_args.items()},
        "model": model_record(loaded.baseline.spliced)["model"],
        "tasks": [task.name for task in tasks],
        "n_shot": {task.name: task.shots for task in tasks},
        "chat_template": bool(loaded.settings.apply_chat_template),
        "system_instruction": loaded.settings.system_instruction,
    }


def _cuts(loaded: LoadedSweep, tasks: Sequence[AskedTask]) -> list[Cut]:
    """Everything, each group of lm_eval's, and each task; in all of them documents count alike."""
    names = [task.name for task in tasks]
    groups = {str(name): [str(member) for member in inside] for name, inside in loaded.tasks["group_map"].items()}
    inside = {name: [member for member in leaves(groups, name) if member in names] for name in groups}
    kept = {name: own for name, own in inside.items() if 0 < len(own) < len(names)}
    kept_tasks = names if len(names) > 1 else []
    return [
        Cut("overall", "overall", None, "overall", names),
        *(Cut("group", name, None, name, own) for name, own in kept.items()),
        *(Cut("task", name, None, name, [name]) for name in kept_tasks),
    ]


def _check_tasks(question: Inquiry, settings: Any, tasks: Mapping[str, Any]) -> None:
    """Raises `UserError` for tasks that are not explained, and for a field that no document has."""
    check_asked(tasks)
    if fields := [text.partition(":")[2] for text in question.of_tokens if text.startswith("field:")]:
        field_names = dict.fromkeys(
            name for docs in documents_asked(tasks, settings).values() for doc in docs.values() for name in doc
        )
        if unknown := [field for field in fields if field not in field_names]:
            raise UserError(f"--by field:{unknown[0]}: no document has this field; they have {', '.join(field_names)}.")
