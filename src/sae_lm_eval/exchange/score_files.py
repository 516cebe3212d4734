"""A file or folder of scores -> the scores: SAEBench's results, runs of delphi's, and tables keyed by dictionary."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.exchange.delphi_scores import delphi_scores, is_delphi
from sae_lm_eval.exchange.dictionary_names import DictionaryName
from sae_lm_eval.exchange.saebench_results import LEFT_OUT, is_finite, is_saebench, is_unreliable, saebench_scores
from sae_lm_eval.exchange.scores import DictionaryScore, ScoreKind, ScoreSet, without_repeats
from sae_lm_eval.files.reading import at_home, is_file, is_folder, json_value, read_text, shown
from sae_lm_eval.scaling.data_files import read_rows

KINDS = (".json", ".csv", ".parquet")
SPEC, RELEASE, ID = "sae", "release", "sae_id"  # columns that name a dictionary
# What pandas calls the index of a table, which is no score.
NAMELESS = re.compile(r"\s*|Unnamed: \d+(\.\d+)?|__index_level_\d+__")
LOWER = "(lower is better)"  # at the end of a column's heading
MOST_FILES, MOST_COLUMNS, MOST_ROWS = 20_000, 64, 100_000
NO_NAME = "A result of SAEBench's names its dictionary in sae_lens_release_id, and has numbers that are defined."
FORM = f"a column '{SPEC}' with specs, or the columns '{RELEASE}' and '{ID}'"
Row = dict[str, Any]


def read_scores(path: str | Path) -> ScoreSet:
    """The scores in a file, or in all files below a folder.

    Raises `UserError` where there are none, a file is damaged, or a dictionary has two values of one score.
    """
    path = at_home(path)
    if is_file(path):
        scores, notes = _of_file(path)
    elif is_folder(path):
        scores, notes = _of_folder(path)
    else:
        raise UserError(f"There is no file or folder of scores '{shown(path, 200)}'.")
    notes = list(dict.fromkeys(notes))
    if not scores:
        raise UserError(f"'{shown(path, 200)}' holds no scores of dictionaries. {' '.join(notes)}".strip())
    return ScoreSet(without_repeats(scores), tuple(notes))


def _of_file(path: Path) -> tuple[list[DictionaryScore], list[str]]:
    if path.suffix.lower() not in KINDS:
        raise UserError(
            f"'{shown(path, 200)}' is none of {', '.join(KINDS)}. Scores are SAEBench's JSON files, folders of "
            f"delphi's runs, or tables with {FORM}."
        )
    if path.suffix.lower() != ".json":
        return _of_table(path, _table_rows(path))
    where = f"'{shown(path, 200)}'"
    value = json_value(read_text(path), where)
    if is_saebench(value) and is_unreliable(value):
        return [], [LEFT_OUT]
    scores = saebench_scores(value, path)
    return scores, [] if scores else [NO_NAME]


def _of_folder(folder: Path) -> tuple[list[DictionaryScore], list[str]]:
    scores: list[DictionaryScore] = []
    notes: list[str] = []
    other: list[str] = []
    for path in _below(folder):
        if path.is_dir():
            scores += delphi_scores(path)
        elif path.suffix.lower() == ".json":
            value = json_value(read_text(path), f"'{shown(path, 200)}'")
            if not is_saebench(value):
                other.append(path.name)
            elif is_unreliable(value):
                notes.append(LEFT_OUT)
            elif file_scores := saebench_scores(value, path):
                scores += file_scores
            else:
                other.append(path.name)
        else:
            rows = _table_rows(path)
            if not rows or not _is_keyed(rows[0]):
                other.append(path.name)
                continue
            file_scores, file_notes = _of_table(path, rows)
            scores += file_scores
            notes += file_notes
    if other:
        notes.append(f"No scores of dictionaries are in {some_of(other)}.")
    return scores, notes


def some_of(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - most
    return f"{', '.join(map(shown, names[:most]))}{f' and {rest:,} more' if rest > 0 else ''}"


def _below(folder: Path) -> list[Path]:
    """The runs of delphi's below a folder, and the files elsewhere that may hold scores; hidden ones are left alone."""

    def walk() -> Iterable[Path]:
        for place, folders, files in os.walk(folder):
            root = Path(place)
            if is_delphi(root):
                folders.clear()
                yield root
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            seen = (root / name for name in sorted(files) if not name.startswith("."))
            yield from (path for path in seen if path.suffix.lower() in KINDS and is_file(path))

    paths = list(islice(walk(), MOST_FILES + 1))
    if len(paths) > MOST_FILES:
        raise UserError(f"'{shown(folder, 200)}' holds more than {MOST_FILES:,} files. Name the folder of the scores.")
    return paths


def _table_rows(path: Path) -> list[Row]:
    """The rows of a CSV or Parquet file, undefined cells as None."""
    rows = read_rows(path, required=()) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    if len(rows) > MOST_ROWS:
        raise UserError(f"'{shown(path, 200)}' has more than {MOST_ROWS:,} rows. A row is one dictionary.")
    return rows


def _parquet_rows(path: Path) -> list[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise UserError(f"'{shown(path, 200)}' has more than {MOST_ROWS:,} rows. A row is one dictionary.")
            names = file.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UserError(f"'{shown(path, 200)}' has the column '{shown(twice)}' twice.")
            return file.read().to_pylist()
    except (ArrowException, OSError, ValueError, OverflowError) as error:  # the last of dates beyond Python's
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{shown(path, 200)}' is no sound Parquet file: {shown(first_line(error), 200)}") from error


def _is_keyed(row: Row) -> bool:
    return SPEC in row or (RELEASE in row and ID in row)


def _of_table(path: Path, rows: Sequence[Row]) -> tuple[list[DictionaryScore], list[str]]:
    """Every column of numbers with a name is a score. Raises `UserError` where none names the dictionaries."""
    where = f"'{shown(path, 200)}'"
    if not rows:
        raise UserError(f"{where} has no rows.")
    if not _is_keyed(rows[0]):
        has = shown(", ".join(map(str, rows[0])), 300)
        raise UserError(f"{where} names no dictionary: it needs {FORM}. It has {has}.")
    names = [_named(row, f"Row {at} of {where}") for at, row in enumerate(rows, 1)]
    columns = [name for name in rows[0] if name not in (SPEC, RELEASE, ID) and not NAMELESS.fullmatch(name)]
    held = {name: [row.get(name) for row in rows if row.get(name) is not None] for name in columns}
    numbers = [name for name, cells in held.items() if cells and all(_is_number(cell) for cell in cells)]
    if len(numbers) > MOST_COLUMNS:
        raise UserError(f"{where} has {len(numbers)} columns of numbers; at most {MOST_COLUMNS} are taken as scores.")
    texts = [name for name in columns if held[name] and name not in numbers]
    notes = [f"These columns of {path.name} hold texts, and are no scores: {some_of(texts)}."] if texts else []
    scores = [
        DictionaryScore(_kind(column, path), name, float(row[column]), str(path))
        for column in numbers
        for name, row in zip(names, rows, strict=True)
        if is_finite(row.get(column))
    ]
    return scores, notes


def _is_number(cell: Any) -> bool:
    """Whether it is one, if perhaps an infinite one."""
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _kind(column: str, path: Path) -> ScoreKind:
    name = column.removesuffix(LOWER).strip()
    return ScoreKind(name, path.name, not column.endswith(LOWER))


def _named(row: Row, where: str) -> DictionaryName:
    parts = [row.get(SPEC)] if SPEC in row else [row.get(RELEASE), row.get(ID)]
    if not isinstance(parts[0], str) or not parts[0].strip():
        raise UserError(f"{where} names no dictionary: '{SPEC if SPEC in row else RELEASE}' is {shown(parts[0])}.")
    if SPEC in row:
        return DictionaryName.of_spec(parts[0])
    id_ = parts[1]
    if not isinstance(id_, str | int | float | None):
        raise UserError(f"{where} names no dictionary: '{ID}' is {shown(id_)}.")
    whole = isinstance(id_, float) and id_.is_integer()  # a column of numbers with an empty cell
    return DictionaryName.of_parts(parts[0], None if id_ is None else str(int(id_) if whole else id_))
