"""The records that `where` wrote beside a run: those that explain a variant of it, and why others are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.files.reading import Foreign, read_json

FOLDER = "where"  # in that of a run
OF_MODEL = ("pretrained", "revision", "subfolder", "peft", "delta")
USUAL = {"revision": "main"}
OF_SPLICE = ("dictionary", "revision", "hook_in", "hook_out", "mode")
OF_VARIANT = ("scale", "splice_tokens")


class WhereRecord(Foreign):
    """A file that `where` wrote, as far as a report reads it."""

    variant: str
    level: float
    documents: int
    held_out: bool
    aligned: float
    rows: list[dict[str, Any]]
    coverage: list[dict[str, Any]]
    provenance: dict[str, Any] = Field(default_factory=dict)
    model_args: dict[str, Any] = Field(default_factory=dict)
    tasks: list[str] = Field(default_factory=list)


def records_beside(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of the comparison's variants, under their names, and a sentence for each other one that lies there.

    Raises `UserError` for a file that is none.
    """
    home = comparison.baseline.folder
    folders = [folder / FOLDER for folder in (home, *home.parents[:2])]
    records, left_out = [], []
    for file in (file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))):
        record = read_json(file, WhereRecord, "a record of `sae-lm-eval where`")
        spliced = _spliced(record.provenance)
        own = [results.name for results in comparison.variants if _spliced(results.provenance) == spliced]
        mismatch = _mismatch(record, comparison) or (None if own else "a variant that is not compared here")
        if mismatch is None:
            records.append({**record.as_given(), "variant": own[0]})
        else:
            left_out.append(f"{'/'.join(file.parts[-2:])} is left out: it is of {mismatch}.")
    return records, left_out


def _mismatch(record: WhereRecord, comparison: Comparison) -> str | None:
    """Of which other model or tasks a record is; None for those of the comparison."""
    if not record.model_args:
        return "an earlier version, which did not write down the model"
    asked = comparison.baseline.model_args
    for name in OF_MODEL:
        here, there = (str(of.get(name) or USUAL.get(name) or "none") for of in (asked, record.model_args))
        if here != there:
            return f"another model ({name} {there}, and here {here})"
    lacking = [task for task in record.tasks if task not in comparison.baseline.tasks]
    return f"other tasks ({', '.join(lacking[:3])})" if lacking else None


def _spliced(provenance: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is spliced where, and how."""
    splices = [tuple(splice.get(name) for name in OF_SPLICE) for splice in provenance.get("splices") or []]
    return splices, *(provenance.get(name) for name in OF_VARIANT)
