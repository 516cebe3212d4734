"""The file that `sae-lm-eval curve` writes, and the runs of lm_eval's that it is a curve for.

A file holds the losses of several models, or of checkpoints, on one text at one context length. `read_family` reads it
as any family; the columns beyond a family's say what was measured, and on what.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import AfterValidator, StrictStr

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign, checked, json_value, read_start
from sae_lm_eval.scaling.curve_estimates import same_loss
from sae_lm_eval.scaling.data_files import Amount, Count, Loss, Name, Positive, Row, read_rows
from sae_lm_eval.scaling.family import CurveRow, Family, Kind, family_of, monotone_curve, row_name

MAIN = "main"
LONGEST_HEADING = 10_000  # letters in which the names of the columns are looked for
COLUMNS = (
    *("model", "revision", "commit", "dtype", "params", "params_non_embedding", "tokens", "tokens_source"),
    *("loss", "nats_per_byte", "text_nats", "text_tokens", "text_bytes", "tokens_hash"),
    *("task", "documents", "text_hash", "context", "text", "source"),
)
# For each category of the text its nats, tokens and bytes, as JSON; only where the text has categories.
CATEGORIES = "categories"


class CategoryLosses(Foreign):
    """What a model's loss on the documents of a category is made of."""

    nats: Positive
    tokens: Count
    bytes: Count


def _categories(cell: str | None) -> str | None:
    if cell is not None:
        checked(
            dict[str, CategoryLosses], json_value(cell, CATEGORIES), CATEGORIES, "an object of nats, tokens and bytes"
        )
    return cell


class MeasuredRow(CurveRow):
    """A row of a file that `curve` wrote."""

    model: Name
    revision: Name
    params: Count
    tokens: Count | Amount
    loss: Loss
    nats_per_byte: Loss
    text_nats: Positive
    text_tokens: Count
    text_bytes: Count
    tokens_hash: Name
    task: Name
    documents: Count
    text_hash: Name
    context: Count
    text: Name
    categories: Annotated[StrictStr | None, AfterValidator(_categories)] = None


@dataclass(frozen=True)
class CurveRun:
    """What a run measured: a model's loss (nats/token) on the first `documents` of a task, read in windows."""

    task: str
    documents: int
    context: int
    model: str
    revision: str
    baseline: float


@dataclass(frozen=True)
class Curves:
    """The curves that a run may use without being told, or why files of its text may not be used.

    `by_category` holds those of the categories whose losses were measured too.
    """

    family: Family | None = None
    checkpoints: Family | None = None
    own: Row | None = None
    notes: tuple[str, ...] = ()
    by_category: Mapping[str, Curves] = field(default_factory=dict)


def read_measured(path: Path) -> list[Row]:
    """The rows of a file that `curve` wrote. Raises `UserError` where it is none."""
    return read_rows(path, required=COLUMNS, kind=MeasuredRow)


def is_measured(path: Path) -> bool:
    """Whether `path` is a CSV with the columns that `curve` writes."""
    try:
        return set(COLUMNS) <= set(pd.read_csv(io.StringIO(read_start(path, LONGEST_HEADING)), nrows=0).columns)
    except (ValueError, OverflowError):  # of which pandas' own are
        return False


def with_losses(rows: Sequence[Row], own: Row, *, per: str) -> list[Row]:
    """The rows with `loss` in nats per token: each of its own tokens, or, per "byte", of those of `own`."""
    length = own["text_bytes"] / own["text_tokens"]
    return [
        {**row, "loss": row["nats_per_byte"] * length if per == "byte" else row["text_nats"] / row["text_tokens"]}
        for row in rows
    ]


def categories_of(rows: Sequence[Row]) -> list[str]:
    """The categories whose losses every row has."""
    row_losses = [json.loads(row.get(CATEGORIES) or "{}") for row in rows]
    return [name for name in row_losses[0] if all(name in losses for losses in row_losses)] if row_losses else []


def of_category(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows, as if a category's documents were the whole text."""
    category_rows = []
    for row in rows:
        losses = json.loads(row[CATEGORIES])[name]
        sums = {f"text_{what}": float(losses[what]) for what in ("nats", "tokens", "bytes")}
        category_rows.append(
            {**row, **sums, "nats_per_byte": losses["nats"] / losses["bytes"], "text": f"{row['text']}, {name}"}
        )
    return category_rows


def curves_for(run: CurveRun, files: Iterable[Path]) -> Curves:
    """The first of `files` that is a curve for the run: the same task, documents and context length, and the run's own
    model at its baseline loss.

    The family is each model at its most trained revision; the checkpoints are the run's own model at its revisions.
    """
    notes = []
    for path in files:
        if not is_measured(path):
            continue
        rows = read_measured(path)
        if not rows or any(rows[0][name] != getattr(run, name) for name in ("task", "documents", "context")):
            continue
        own = next((row for row in rows if _key(row) == (run.model, run.revision)), None)
        if own is None:
            notes.append(f"{path} is of this text, but without {run.model}: measure it there too")
        elif not same_loss(loss := own["text_nats"] / own["text_tokens"], run.baseline):
            notes.append(f"{path} has {row_name(own)} at {loss:.4g}, and the run at {run.baseline:.4g}: it is not used")
        else:
            curves = _curves(with_losses(rows, own, per="byte"), own, path)
            if curves.family is None and curves.checkpoints is None:
                reason = "is not used: it has no two models or checkpoints whose losses fall with compute"
                if len(rows) == 1:
                    reason = f"has {row_name(own)} alone, and one model is no curve: measure others there too"
                notes.append(f"{path} {reason}")
                continue
            parts = {name: (of_category(rows, name), of_category([own], name)[0]) for name in categories_of(rows)}
            by_category = {
                name: _curves(with_losses(part, own_part, per="byte"), own_part, path)
                for name, (part, own_part) in parts.items()
            }
            return _with_categories(curves, by_category, path)
    return Curves(notes=tuple(notes))


def _key(row: Row) -> tuple[str, str]:
    return str(row["model"]), str(row["revision"])


def _with_categories(curves: Curves, by_category: Mapping[str, Curves], path: Path) -> Curves:
    """The curves of a text with those of its categories that have any, and a note on those that lack some."""
    usable = {name: part for name, part in by_category.items() if part.family or part.checkpoints}
    notes = curves.notes
    if lacking := [name for name, part in by_category.items() if part.notes]:
        notes = (*notes, f"{path}: curves of {', '.join(lacking)} that do not fall with compute are not used")
    return replace(curves, by_category=usable, notes=notes)


def _curves(rows: list[Row], own: Row, path: Path) -> Curves:
    latest = {str(row["model"]): row for row in sorted(rows, key=lambda row: row["tokens"])}
    latest[str(own["model"])] = next(row for row in rows if _key(row) == _key(own))
    course = [row for row in rows if row["model"] == own["model"] and row["tokens"] <= own["tokens"]]
    notes: list[str] = []

    def curve(points: list[Row], kind: Kind) -> Family | None:
        """The curve, None with a note where nothing can be read off it."""
        if len(points) < 2:
            return None
        try:
            measured = family_of(points, name=path.stem, kind=kind, where=str(path))
            monotone_curve(measured.compute, measured.loss)
            _ = kind == "family" and measured.fit  # of checkpoints no law is fitted
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ").removesuffix(".")
            notes.append(f"the {kind} curve of {path} is not used: {reason[:1].lower()}{reason[1:]}")
            return None
        return measured

    family, checkpoints = curve(list(latest.values()), "family"), curve(course, "checkpoints")
    return Curves(family=family, checkpoints=checkpoints, own=own, notes=tuple(notes))
