"""Answers as they come, in a file that outlives the process."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from sae_lm_eval.errors import UserError

logger = logging.getLogger(f"lm_eval.{__name__}")  # below lm_eval's own, whose verbosity the user sets

ASIDE = ".corrupt"


class DiskError(UserError):
    """What a run has to keep cannot be written: no fault of the variant that was being evaluated."""


class Journal:
    """Answers by model and by what was asked, each batch on disk whole or not at all.

    Without a `file` they are in a temporary one, which stays in memory while it is small. A file that is no database,
    or a damaged one, is set aside and begun anew.

    Raises `DiskError` where the file cannot be opened or written.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        try:
            self._store = self._opened()
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.DatabaseError as error:
            assert file is not None, "a new file is no damaged one"
            aside = file.with_name(file.name + ASIDE)
            os.replace(file, aside)
            logger.warning("The journal of answers is damaged (%s): set aside as '%s', and begun anew.", error, aside)
            self._store = self._opened()

    def _opened(self) -> sqlite3.Connection:
        store = sqlite3.connect(self.file or "", check_same_thread=False)
        try:
            (found,) = store.execute("pragma quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            with store:
                store.execute(
                    "create table if not exists answers (models text, asked blob, answer blob, "
                    "primary key (models, asked)) without rowid"
                )
        except BaseException:
            store.close()
            raise
        return store

    def get(self, models: str, asked: bytes) -> bytes | None:
        query = "select answer from answers where models = ? and asked = ?"
        found = self._store.execute(query, (models, asked)).fetchone()
        return None if found is None else found[0]

    def put(self, models: str, answers: Mapping[bytes, bytes]) -> None:
        """Keep a batch of answers by what was asked."""
        self.put_all([(models, asked, answer) for asked, answer in answers.items()])

    def put_all(self, rows: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Keep answers as `drain` gives them: all of them, or none where that fails."""
        try:
            with self._store:
                self._store.executemany("insert or replace into answers values (?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error

    def drain(self) -> list[tuple[str, bytes, bytes]]:
        """Every answer behind what it was asked of and asked, which are forgotten."""
        rows = self._store.execute("select models, asked, answer from answers").fetchall()
        with self._store:
            self._store.execute("delete from answers")
        return rows

    def close(self) -> None:
        self._store.close()

    def _unusable(self, error: Exception) -> DiskError:
        return DiskError(
            f"The answers cannot be kept in '{self.file}': {error}. Free some space or give another --output_path; "
            f"the same command continues."
        )
