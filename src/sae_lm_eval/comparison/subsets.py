"""Which documents, with which weights, make one row of a comparison: a task, a group, a category, all of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.errors import UserError, did_you_mean
from sae_lm_eval.files.escaping import printable
from sae_lm_eval.files.reading import read_text, shown, yaml_value
from sae_lm_eval.results.results import Results

CATEGORY_KEYS = ("field", "values", "tasks")


@dataclass(frozen=True, eq=False)
class Cut:
    """`weights` gives each task's share (None: every document counts alike); `chosen` the documents where not all, and
    `variants` the names of those that have such a row, where not all."""

    section: str
    name: str
    parent: str | None
    alias: str
    tasks: Sequence[str]
    weights: Sequence[float] | None = None
    chosen: Mapping[str, set[int]] | None = None
    variants: frozenset[str] | None = None


def leaves(groups: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """The tasks of a group, of its groups, and so on; a task is its own."""
    if name not in groups:
        return [name]
    return list(dict.fromkeys(task for member in groups[name] for task in leaves(groups, member)))


def alias_of(results: Results, name: str) -> str:
    return printable(results.aliases.get(name, name)).lstrip(" -")


def structure(results: Results) -> list[Cut]:
    """Everything, each group that lm_eval scores and each task. A group's weights are found by its score later."""
    parents = {member: group for group, members in reversed(results.groups.items()) for member in members}
    scored = [name for name in results.groups if results.scores.get(name)]
    return [
        Cut("overall", "overall", None, "overall", results.tasks),
        *(
            Cut("group", name, parents.get(name), alias_of(results, name), leaves(results.groups, name))
            for name in scored
        ),
        *(Cut("task", name, parents.get(name), alias_of(results, name), [name], [1.0]) for name in results.tasks),
    ]


def read_categories_file(path: Path) -> Mapping[str, Any]:
    """A category map from a YAML file. Raises `UserError` for what cannot be read or is none."""
    return read_categories(read_text(path), f"'{shown(path, 200)}'")


def read_categories(text: str, where: str) -> Mapping[str, Any]:
    """A category map from YAML. Raises `UserError` for what is none."""
    return check_categories(yaml_value(text, where), where)


def check_categories(categories: Any, where: str) -> Mapping[str, Any]:
    """`categories` as a map of them. Raises `UserError` where it is none, or an entry is not as it has to be."""
    if not isinstance(categories, Mapping) or not categories:
        raise UserError(f"{where} must map categories to tasks, as in 'knowledge: [mmlu, arc_easy]'.")
    names: list[str] = []
    for name, entry in categories.items():
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            raise UserError(
                f"{where}: {shown(repr(name))} is no name of a category: write a text, in quotes if need be."
            )
        if str(name) in names or name == "overall":
            taken = "is the name of all tasks together" if name == "overall" else "names two categories"
            raise UserError(f"{where}: '{shown(name)}' {taken}: choose another.")
        names.append(str(name))
        if isinstance(entry, Mapping):
            _check_keys(str(name), entry)
        else:
            _check_listed(entry, f"Category '{name}'", "tasks, groups or patterns")
    return categories


def _check_keys(category: str, entry: Mapping[str, Any]) -> None:
    unknown = [str(word) for word in entry if word not in CATEGORY_KEYS]
    if unknown or "field" not in entry:
        raise UserError(
            f"Category '{category}' has {', '.join(unknown) or 'no field'}: give 'field', and 'values' or 'tasks'."
        )
    if not isinstance(entry["field"], str) or not entry["field"].strip():
        raise UserError(f"Category '{category}': {shown(entry['field'])} is no name of a field of the documents.")
    for key, what in (("tasks", "tasks, groups or patterns"), ("values", "values of the field")):
        if key in entry:
            _check_listed(entry[key], f"Category '{category}', {key}", what)


def _check_listed(value: Any, where: str, what: str) -> None:
    words = _listed(value)
    odd = [word for word in words if not isinstance(word, str | int | float) and word is not None]
    if odd or not words:
        raise UserError(f"{where}: {shown(odd[0] if odd else value)} is neither one of nor a list of {what}.")


def categorise(
    categories: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
    tasks: Sequence[str],
    documents: Mapping[str, pd.DataFrame],
) -> Iterator[Cut]:
    """The cuts of a category map: a task, group or pattern, a list of them, or a field of the documents.

    `groups` has the members of each, and `documents` by task the column doc, and doc_id in the index.
    `{field: subject}` makes a category for each value of the field, `{field: subject, values: [...]}` one of those
    values; `tasks:` restricts either.
    Raises `UserError` for a map that is none, and for two categories that would have one name.
    """
    if categories:
        check_categories(categories, "categories")
    names: set[str] = set()
    for key, entry in categories.items():
        for cut in _cuts_of_entry(printable(key), entry, groups, tasks, documents):
            if cut.name in names or cut.name == "overall":
                raise UserError(
                    f"categories: '{shown(cut.name)}' would be the name of two: of a value of a field, and of another "
                    "category. Choose another name."
                )
            names.add(cut.name)
            yield cut


def _cuts_of_entry(
    name: str,
    entry: Any,
    groups: Mapping[str, Sequence[str]],
    tasks: Sequence[str],
    documents: Mapping[str, pd.DataFrame],
) -> Iterator[Cut]:
    if not isinstance(entry, Mapping):
        yield Cut("category", name, None, name, tasks_meant(name, entry, groups, tasks))
        return
    within = tasks_meant(name, entry["tasks"], groups, tasks) if "tasks" in entry else tasks
    ids_by_value = _by_value(str(entry["field"]), {task: documents[task] for task in within})
    if not ids_by_value:
        fields = sorted({str(field) for task in within for doc in documents[task]["doc"].head(1) for field in doc})
        raise UserError(f"Category '{name}': no document has a field '{entry['field']}', only {', '.join(fields)}.")
    if "values" not in entry:
        for value, chosen in ids_by_value.items():
            yield Cut("category", f"{name}: {value}", name, printable(value), list(chosen), None, chosen)
        return
    values = [str(value) for value in _listed(entry["values"])]
    if missing := [value for value in values if value not in ids_by_value]:
        hint = did_you_mean(missing[0], ids_by_value) or f" There are {', '.join(ids_by_value)}."
        raise UserError(f"Category '{name}': no document's {entry['field']} is '{missing[0]}'.{hint}")
    chosen: dict[str, set[int]] = {}
    for value in values:
        for task, ids in ids_by_value[value].items():
            chosen[task] = chosen.get(task, set()) | ids
    yield Cut("category", name, None, name, list(chosen), None, chosen)


def check_field(field: str, documents: Mapping[str, pd.DataFrame]) -> None:
    """Raise `UserError` unless some document has the field."""
    if not _by_value(field, documents):
        fields = sorted({str(key) for frame in documents.values() for doc in frame["doc"].head(1) for key in doc})
        raise UserError(
            f"docs_by: no document has a field '{field}'.{did_you_mean(field, fields)} They have {', '.join(fields)}."
        )


def _by_value(field: str, documents: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, set[int]]]:
    ids_by_value: dict[str, dict[str, set[int]]] = {}
    for task, frame in documents.items():
        for doc_id, doc in zip(frame.index.get_level_values("doc_id"), frame["doc"], strict=True):
            if isinstance(doc, Mapping) and doc.get(field) is not None:
                ids_by_value.setdefault(str(doc[field]), {}).setdefault(task, set()).add(doc_id)
    return ids_by_value


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def tasks_meant(category: str, words: Any, groups: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> list[str]:
    """The tasks that `words`, names or patterns of tasks and groups, stand for; raises `UserError` for any other."""
    known_names = [*groups, *tasks]
    meant: list[str] = []
    for word in _listed(words):
        names = [name for name in known_names if fnmatch.fnmatchcase(name, str(word)) or name == str(word)]
        if not names:
            raise UserError(
                f"Category '{category}': '{word}' is no task or group of those asked."
                f"{did_you_mean(str(word), known_names)}"
            )
        meant += [task for name in names for task in leaves(groups, name)]
    return list(dict.fromkeys(meant))


def group_weights(scores: Sequence[Sequence[float]], sizes: Sequence[int], group: Sequence[float]) -> np.ndarray | None:
    """The weights lm_eval gave the tasks of a group, which it does not write down: by size, or all the same.

    `scores` has a row for each run, of the tasks' scores, `group` each run's score. None where neither weighting gives
    them.
    """
    for weights in (np.array(sizes) / sum(sizes), np.full(len(sizes), 1 / len(sizes))):
        if np.allclose(np.asarray(scores) @ weights, group, rtol=1e-9, atol=1e-12):
            return weights
    return None
