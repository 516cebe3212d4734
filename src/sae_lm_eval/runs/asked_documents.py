"""What a run is divided by, categories and `docs_by`: looked for among its tasks before a model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lm_eval.errors import UserError, did_you_mean
from sae_lm_eval.files.reading import at_home
from sae_lm_eval.runs.task_index import members


def category_map(given: Any) -> Mapping[str, Any] | None:
    """The category map that is given or lies in the file given. Raises `UserError` where it is none."""
    if given is None:
        return None
    from sae_lm_eval.comparison.subsets import check_categories, read_categories_file

    return (
        check_categories(given, "categories")
        if isinstance(given, dict)
        else read_categories_file(user_path(given, "categories"))
    )


def field_of(given: Any) -> str | None:
    """The name of a field that documents go by. Raises `UserError` where it can be none."""
    if given is not None and not (isinstance(given, str) and given.strip()):
        raise UserError(f"docs_by: {given!r} names no field of the documents: give one, such as passage.")
    return given


def user_path(value: Any, key: str) -> Path:
    """A path of the user's. Raises `UserError` that names the `key` where it can be none."""
    if not isinstance(value, str | Path) or not str(value).strip():
        raise UserError(f"{key}: {value!r} is no path.")
    if str(path := at_home(value)).startswith("~"):
        raise UserError(f"{key}: there is no user '{path.parts[0][1:]}' here. Give the whole path.")
    return path


def check_named_tasks(
    categories: Mapping[str, Any] | None, samples: Mapping[str, Any] | None, tasks: Sequence[str], include_path: Any
) -> None:
    """Raise `UserError` where categories or samples name what is none of the `tasks` asked, as far as names tell."""
    if (categories is None and samples is None) or (tree := members(tasks, include_path)) is None:
        return
    check_sampled(samples or {}, tree[1], {*tasks, *tree[0]})
    if categories is None:
        return
    from sae_lm_eval.comparison.subsets import tasks_meant

    for name, entry in categories.items():
        words = entry.get("tasks") if isinstance(entry, Mapping) else entry
        if words is not None:
            tasks_meant(str(name), words, *tree)


def check_sampled(samples: Mapping[str, Any], tasks: Collection[str], requested: Collection[Any]) -> None:
    """Raise `UserError` where `samples` names none of the `tasks`; `requested` has the groups and tags of some."""
    for name in samples:
        if name not in tasks and name in requested:
            raise UserError(f"samples: '{name}' is a group of tasks: name each task of it, with numbers of its own.")
        if name not in tasks:
            raise UserError(f"samples: the task '{name}' is not among those asked.{did_you_mean(name, tasks)}")


def documents_asked(tasks: Mapping[str, Any], settings: Any) -> dict[str, dict[int, Mapping[str, Any]]]:
    """By task the documents asked, by their numbers; those of running text are none. `settings` as for lm_eval."""
    from lm_eval.evaluator_utils import get_sample_size

    return {
        name: dict(
            task.doc_iterator(limit=get_sample_size(task, settings.limit), samples=(settings.samples or {}).get(name))
        )
        for name, task in tasks.items()
        if task.OUTPUT_TYPE != "sae_fidelity"  # what is measured on running text is not compared by document
    }


def check_fields(
    categories: Mapping[str, Any] | None, docs_by: str | None, settings: Any, loaded: Mapping[str, Any]
) -> None:
    """Raise `UserError` where no document asked of the tasks that lm_eval `loaded` has what is to divide them.

    `settings` is lm_eval's `EvaluatorConfig`.
    """
    if categories is None and docs_by is None:
        return
    import pandas as pd

    from sae_lm_eval.comparison.subsets import categorise, check_field

    documents = {
        name: pd.DataFrame({"doc": list(docs.values())}, index=pd.Index(docs, name="doc_id"))
        for name, docs in documents_asked(loaded["tasks"], settings).items()
    }
    if not documents:
        return
    for _ in categorise(categories or {}, loaded["group_map"], list(documents), documents):
        pass
    if docs_by is not None:
        check_field(docs_by, documents)
