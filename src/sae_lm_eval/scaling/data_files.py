"""The package's data files, and the two sentences that every look-up needs."""

import io
import warnings
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BeforeValidator, Field

from sae_lm_eval.errors import UserError, did_you_mean, first_line
from sae_lm_eval.files.reading import Foreign, checked, is_file, read_text, shown

Row = dict[str, Any]


def _no_truth(cell: Any) -> Any:
    if isinstance(cell, bool):
        raise ValueError("it must be a number")
    return cell


# Cells of a column in which another is a text are texts as well, so that numbers are read out of them.
Number = Annotated[float, BeforeValidator(_no_truth), Field(ge=-1e40, le=1e40, allow_inf_nan=False)]
Amount = Annotated[float, BeforeValidator(_no_truth), Field(ge=0, le=1e40, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_no_truth), Field(ge=1e-40, le=1e40, allow_inf_nan=False)]
Loss = Annotated[float, BeforeValidator(_no_truth), Field(ge=1e-9, le=1e3, allow_inf_nan=False)]  # nats/token
Count = Annotated[int, BeforeValidator(_no_truth), Field(ge=1, lt=2**63)]
Name = Annotated[str, BeforeValidator(str), Field(min_length=1, max_length=1000)]


def data_path(name: str) -> Path:
    """Path of a file of `sae_lm_eval/data`."""
    return Path(str(resources.files("sae_lm_eval"))) / "data" / name


def read_rows(path: str | Path, *, required: Iterable[str], kind: type[Foreign] = Foreign) -> list[Row]:
    """The rows of a CSV, empty cells as None, the others as `kind` has them.

    Raises `UserError` where the file or a column is missing or there twice, a row has more cells than there are
    columns, or a cell is none of its kind.
    """
    path = Path(path)
    where = f"'{shown(path, 200)}'"
    if not is_file(path):
        raise UserError(f"{where} does not exist or is not a file.")
    frame = _frame(read_text(path), where)
    missing = [column for column in required if column not in frame.columns]
    if missing:
        has = shown(", ".join(map(str, frame.columns)), 600)
        raise UserError(f"{where} lacks the column {', '.join(missing)}. It has: {has}.")
    rows = [
        {str(key): None if pd.isna(value) else value for key, value in row.items()} for row in frame.to_dict("records")
    ]
    what = f"as its columns {', '.join(kind.model_fields)} have to be" if kind.model_fields else "a row"
    return [checked(kind, row, f"Row {at} of {where}", what).as_given() for at, row in enumerate(rows, 1)]


def _frame(text: str, where: str) -> pd.DataFrame:
    """A CSV's cells. pandas by itself takes first cells of longer rows for their names, and renames equal columns."""
    try:
        first = pd.read_csv(io.StringIO(text), header=None, nrows=1, dtype=str, keep_default_na=False)
        heads = [str(name).strip() for name in first.iloc[0]]
        if twice := next((name for name in heads if name and heads.count(name) > 1), None):
            raise UserError(f"{where} has the column '{shown(twice)}' twice.")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(io.StringIO(text), index_col=False)
    except pd.errors.ParserWarning as error:
        raise UserError(f"{where} has a row with more cells than there are columns.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OverflowError) as error:
        raise UserError(f"{where} is not a readable CSV file: {first_line(error)}") from error


def unknown(kind: str, name: str, names: Iterable[str], aliases: Iterable[str] = ()) -> UserError:
    """The error for a name that is in no table, with the nearest names, of which `aliases` are others."""
    names = list(names)
    which = did_you_mean(name, [*names, *aliases]) or f" Known: {', '.join(names)}."
    return UserError(f"There is no {kind} {name!r}.{which}")
