"""Text of the user's, cut into windows of token ids. No more of it is read and tokenised than is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr

from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.files.reading import at_home, checked, is_file, json_value, read_lines, read_start, shown

READERS = ("txt", "jsonl", "parquet")
WRITTEN: Any = StrictStr | StrictInt | StrictFloat | StrictBool  # of which a column of texts or names consists
LETTERS = 16  # of a token, more than it has on average
MOST_LETTERS = 1024  # of a token on average: what is beyond so many is not read of a .txt
LEAST_LETTERS = 2**20


def check_file(path: str | Path) -> tuple[Path, str]:
    """The path and the kind of a text file. Raises `UserError` where it is missing or of another kind."""
    path = at_home(path)
    if not is_file(path):
        raise UserError(f"There is no text file '{shown(path, 200)}'.")
    return path, one_of(path.suffix.removeprefix("."), READERS, f"The kind of '{shown(path.name)}':")


def check_writable(path: Path) -> None:
    """Before anything is run. Raises `UserError` where no file can be written at `path`."""
    try:
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}. Name another file.") from error


def check_readable(path: str | Path) -> None:
    """Raise `UserError` as `read_documents` does, for as much as its first document tells."""
    next(read_documents(path, tokens=1))


def read_documents(path: str | Path, column: str = "text", *, tokens: int | None = None) -> Iterator[str]:
    """The documents of a file: a .txt is one, a .jsonl or .parquet has one a row in `column`.

    They are read as they are asked for, of a .txt as much as holds the first `tokens`.

    Raises `UserError` where the file is missing, of another kind, damaged, empty, or has no such column.
    """
    path, kind = check_file(path)
    if kind == "txt":
        letters = -1 if tokens is None else max(MOST_LETTERS * tokens, LEAST_LETTERS)
        documents = iter([read_start(path, letters)])
    else:
        documents = _of_lines(path, column) if kind == "jsonl" else _of_parquet(path, column)
    return _with_text(documents, path)


def _with_text(documents: Iterator[str], path: Path) -> Iterator[str]:
    empty = True
    for document in documents:
        if document.strip():
            empty = False
            yield document
    if empty:
        raise UserError(f"'{shown(path, 200)}' holds no text.")


def _of_lines(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"Line {number} of '{shown(path, 200)}'"
        row = checked(dict[str, object], json_value(line, where), where, "an object")
        if column not in row:
            raise UserError(f"{where} has no column '{column}'. It has {shown(', '.join(row))}.")
        value = checked(WRITTEN, row[column], f"{where}, {column},", "a text")
        yield str(value)


def _of_parquet(path: Path, column: str) -> Iterator[str]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if names.count(column) != 1:
                has = f"the column '{column}' twice" if column in names else f"no column '{column}'"
                raise UserError(f"'{shown(path, 200)}' has {has}. It has {shown(', '.join(names))}.")
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0).to_pylist():
                    if value is not None:
                        yield str(checked(WRITTEN, value, f"'{shown(path, 200)}', {column},", "a text"))
    except (ArrowException, OSError, ValueError, OverflowError) as error:  # the last of dates beyond Python's
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{shown(path, 200)}' is no sound Parquet file: {shown(error, 200)}") from error


def windows(
    documents: Iterable[str],
    encode: Callable[[str], list[int]],
    *,
    prefix: int | None,
    length: int,
    tokens: int,
) -> list[list[int]]:
    """Windows of up to `length` ids, each begun with the id `prefix` if given, until `tokens` ids of text are in.

    A document that begins with `prefix` itself is not given it twice.
    """
    out: list[list[int]] = []
    left, head = tokens, [] if prefix is None else [prefix]
    for document in documents:
        ids = first_ids(document, encode, left + len(head))
        if head and ids[:1] == head:
            ids = ids[1:]
        for start in range(0, len(ids), length - len(head)):
            piece = ids[start : start + length - len(head)][:left]
            if piece:
                out.append(head + piece)
                left -= len(piece)
        if not left:
            break
    return out


def first_ids(document: str, encode: Callable[[str], list[int]], count: int) -> list[int]:
    """At least the first `count` ids of a document, those of the whole where it has fewer.

    Of a long one they are taken from its beginning, of which twice as much has to begin with the same ids.
    """
    letters = max(LETTERS * count, 4096)
    before: list[int] | None = None
    while letters < len(document):
        ids = encode(document[:letters])
        if before is not None and len(before) >= count and before[:count] == ids[:count]:
            return ids[:count]
        before, letters = ids, 2 * letters
    return encode(document)
