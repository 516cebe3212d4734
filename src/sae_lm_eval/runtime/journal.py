"""Answers as they come, in a file that outlives the process."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.files.logs import logger_of

logger = logger_of(__name__)

ASIDE = ".corrupt"
BESIDE = ("-journal", "-wal", "-shm")  # files of SQLite's that belong to a database, and to no other
TABLE = (
    "CREATE TABLE answers (models blob, asked blob, answer blob, digest blob, primary key (models, asked)) "
    "without rowid"
)
# The second is Python's, of a damaged byte in SQLite's own message.
ERRORS = (sqlite3.Error, UnicodeDecodeError)
# What the disk, the system or another process says; every other error of SQLite's is damage of the file.
NO_DAMAGE = frozenset(
    {
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM),
    }
)
Returned = TypeVar("Returned")
Row = tuple[bytes, bytes, bytes, bytes]


class DiskError(UserError):
    """What a run has to keep cannot be written: no fault of the variant that was being evaluated."""


class Journal:
    """Answers by model and by what was asked, each batch on disk whole or not at all.

    Without a `file` they are in a temporary one, which stays in memory while it is small. Each answer is kept with a
    digest, without which it is not given out. A file that is no database, or a damaged one, is set aside with a warning
    and begun anew with those of its answers that agree with their digest.

    Raises `DiskError` where the file cannot be opened or written.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        self._store: sqlite3.Connection | None = None
        self._on_store(lambda _store: None)

    def get(self, models: str, question: bytes) -> bytes | None:
        def answer(store: sqlite3.Connection) -> bytes | None:
            query = "select * from answers where models = ? and asked = ?"
            rows = store.execute(query, (models.encode(), question)).fetchall()
            _check_digests(rows)
            return rows[0][2] if rows else None

        return self._on_store(answer)

    def put(self, models: str, answers: Mapping[bytes, bytes]) -> None:
        """Keep a batch of answers by what was asked."""
        self.put_all([(models, question, answer) for question, answer in answers.items()])

    def put_all(self, rows: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Keep answers as `drain` gives them: all of them, or none where that fails."""
        kept = [_with_digest(models.encode(), question, answer) for models, question, answer in rows]
        self._on_store(lambda store: _insert(store, kept))

    def drain(self) -> list[tuple[str, bytes, bytes]]:
        """Every answer behind what it was asked of and asked, which are forgotten."""

        def drained(store: sqlite3.Connection) -> list[tuple[str, bytes, bytes]]:
            rows = [(models.decode(), question, answer) for models, question, answer, _ in _sound_rows(store)]
            with store:
                store.execute("delete from answers")
            return rows

        return self._on_store(drained)

    def is_empty(self) -> bool:
        return self._on_store(lambda store: store.execute("select 1 from answers limit 1").fetchone() is None)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _on_store(self, act: Callable[[sqlite3.Connection], Returned]) -> Returned:
        try:
            return act(self._opened())
        except ERRORS as error:
            if self.file is None or _code(error) in NO_DAMAGE:
                raise self._unusable(error) from error
            self._begin_anew(error)
        try:
            return act(self._opened())
        except ERRORS as error:
            raise self._unusable(error) from error

    def _opened(self) -> sqlite3.Connection:
        if self._store is None:
            if self.file is not None:
                _check_header(self.file)
            # Closed by `close`, as it is where the check of what it holds fails.
            self._store = sqlite3.connect(self.file or "", check_same_thread=False)
            (report,) = self._store.execute("pragma quick_check(1)").fetchone()
            if report != "ok":
                raise sqlite3.DatabaseError(report)
            tables = self._store.execute("select sql from sqlite_master").fetchall()
            if not tables:
                with self._store:
                    self._store.execute(TABLE)
            elif tables != [(TABLE,)]:
                raise sqlite3.DatabaseError("it does not hold the table of answers")
            # A damaged question would never be found, and its neighbours might not be.
            _check_digests(self._store.execute("select * from answers"))
        return self._store

    def _begin_anew(self, error: Exception) -> None:
        """Set the file aside, and copy what is sound of it into a new one."""
        assert self.file is not None
        self.close()
        aside = self.file.with_name(self.file.name + ASIDE)
        try:
            for ending in ("", *BESIDE):
                if os.path.lexists(f"{self.file}{ending}"):
                    os.replace(f"{self.file}{ending}", f"{aside}{ending}")
        except OSError as reason:
            raise self._unusable(reason) from error
        kept = list(_rows_of(aside))
        logger.warning(
            "The journal of answers is damaged (%s): set aside as '%s', and begun anew with the %d answers that are "
            "sound.",
            *(first_line(error), aside, len(kept)),
        )
        try:
            _insert(self._opened(), kept)
        except ERRORS as reason:
            raise self._unusable(reason) from reason

    def _unusable(self, error: Exception) -> DiskError:
        return DiskError(
            f"The answers cannot be kept in '{self.file}': {error}. Free some space or give another --output_path; "
            f"the same command continues."
        )


def _code(error: Exception) -> int | None:
    """SQLite's primary result code; None for errors of Python's own."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _check_header(file: Path) -> None:
    """Raise `sqlite3.DatabaseError` for a version of the file format in which no journal is written.

    SQLite opens some of them for reading only, which would pass for a disk that cannot be written.
    """
    try:
        with file.open("rb") as opened:
            header = opened.read(20)
    except OSError:
        return  # there is none yet, or SQLite says why it cannot be read
    if header and header[18:] != b"\1\1":
        raise sqlite3.DatabaseError("its header is none of a journal")


def _insert(store: sqlite3.Connection, rows: Sequence[Row]) -> None:
    with store:
        store.executemany("insert or replace into answers values (?, ?, ?, ?)", rows)


def _with_digest(models: bytes, question: bytes, answer: bytes) -> Row:
    digest = hashlib.blake2b(digest_size=16)
    for part in (models, question, answer):
        digest.update(len(part).to_bytes(8) + part)
    return models, question, answer, digest.digest()


def _is_sound(row: tuple[Any, ...]) -> bool:
    return all(type(part) is bytes for part in row) and row == _with_digest(*row[:3])


def _check_digests(rows: Iterable[tuple[Any, ...]]) -> None:
    if not all(map(_is_sound, rows)):
        raise sqlite3.DatabaseError("an answer does not agree with its digest")


def _sound_rows(store: sqlite3.Connection) -> Iterator[Row]:
    return filter(_is_sound, store.execute("select models, asked, answer, digest from answers"))


def _rows_of(damaged: Path) -> Iterator[Row]:
    """The sound rows of a damaged file, as far as it can be read."""
    store = sqlite3.connect(damaged)
    try:
        yield from _sound_rows(store)
    except ERRORS as error:
        logger.info("'%s' cannot be read further: %s", damaged, error)
    finally:
        store.close()
