"""The package's data files, and the two sentences that every look-up needs."""

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lm_eval.errors import UserError

Row = dict[str, Any]


def data_path(name: str) -> Path:
    """Path of a file of `sae_lm_eval/data`."""
    return Path(str(resources.files("sae_lm_eval"))) / "data" / name


def read_rows(path: str | Path, *, required: Iterable[str]) -> list[Row]:
    """The rows of a CSV, empty cells as None; raises UserError when the file or a column is missing."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable CSV file: {error}") from error
    missing = [column for column in required if column not in frame.columns]
    if missing:
        has = ", ".join(map(str, frame.columns))
        raise UserError(f"{path} lacks the column {', '.join(missing)}. It has: {has}.")
    return [
        {str(key): None if pd.isna(value) else value for key, value in row.items()} for row in frame.to_dict("records")
    ]


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is in no table, with the nearest names."""
    known = list(known)
    lowered = {entry.lower(): entry for entry in known}
    near = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
    return UserError(f"There is no {kind} {name!r}. {hint}")
