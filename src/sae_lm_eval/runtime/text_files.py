"""Text of the user's, cut into windows of token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from sae_lm_eval.errors import UserError, one_of

READERS = ("txt", "jsonl", "parquet")


def check_file(path: str | Path) -> tuple[Path, str]:
    """The path and the kind of a text file. Raises `UserError` where it is missing or of another kind."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"There is no text file '{path}'.")
    return path, one_of(path.suffix.removeprefix("."), READERS, f"The kind of '{path.name}':")


def read_documents(path: str | Path, column: str = "text") -> list[str]:
    """The documents of a file: a .txt is one, a .jsonl or .parquet has one a row in `column`.

    Raises `UserError` where the file is missing, of another kind, empty, or has no such column.
    """
    path, kind = check_file(path)
    if kind == "txt":
        documents = [path.read_text()]
    else:
        import pandas as pd

        frame = pd.read_json(path, lines=True) if kind == "jsonl" else pd.read_parquet(path)
        if column not in frame:
            raise UserError(f"'{path}' has no column '{column}'. It has {', '.join(map(str, frame.columns))}.")
        documents = frame[column].astype(str).tolist()
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise UserError(f"'{path}' holds no text.")
    return documents


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
        if not left:
            break
        ids = encode(document)
        if head and ids[:1] == head:
            ids = ids[1:]
        for start in range(0, len(ids), length - len(head)):
            piece = ids[start : start + length - len(head)][:left]
            if piece:
                out.append(head + piece)
                left -= len(piece)
    return out
