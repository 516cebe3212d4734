"""Digests of what a run wrote, so that nothing that changed since is taken for it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from pydantic import StrictStr

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import is_file, read_json, shown

DIGESTS = "digests.json"  # beside the folder that lm_eval makes in its --output_path

_is_checked: ContextVar[bool] = ContextVar("_is_checked", default=True)


class ChangedFile(UserError):
    """A file is not as its digest says, and may have been changed on purpose."""


def write_digests(folder: Path) -> None:
    """Write down, in `folder`, the digest of every file in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside the scope files are read whatever their digests say."""
    token = _is_checked.set(False)
    try:
        yield
    finally:
        _is_checked.reset(token)


def check_digest(file: Path) -> None:
    """Raise `ChangedFile` where `file` is not as the digest beside it says; where there is none, nothing is known."""
    for folder in (file.parent, file.parent.parent):
        if is_file(written := folder / DIGESTS):
            if _is_checked.get():
                _check(file, _known(written).get(file.relative_to(folder).as_posix()), written)
            return


def check_digests(folder: Path) -> None:
    """Raise `UserError` where a file in `folder` is missing or cannot be read; of others nothing is known.

    Raises `ChangedFile` where all are there, and one is not as its digest says, or the digests cannot be read.
    """
    if not is_file(written := folder / DIGESTS):
        return
    changed: list[ChangedFile] = []
    for name, digest in _known(written).items():
        if not is_file(folder / name):
            raise UserError(f"There is no '{shown(folder / name, 200)}' any more.")
        try:
            _check(folder / name, digest, written)
        except ChangedFile as error:
            changed.append(error)
    if changed:
        raise changed[0]


def _known(written: Path) -> dict[str, str]:
    try:
        return read_json(written, dict[str, StrictStr], "a record of digests")
    except UserError as error:
        raise ChangedFile(
            f"{error} So nothing tells whether the results are as they were written. {_ways(written)}"
        ) from error


def _check(file: Path, digest: str | None, written: Path) -> None:
    if digest is None:
        return
    if not is_file(file):
        raise UserError(f"'{shown(file, 200)}' is no file.")
    try:
        status = file.stat()
        actual = _digest_of_version(file, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise UserError(f"'{shown(file, 200)}' cannot be read: {error.strerror or error}.") from error
    if digest != actual:
        raise ChangedFile(
            f"'{shown(file, 200)}' is not as it was written: something changed or damaged it. {_ways(written)}"
        )


def _ways(written: Path) -> str:
    """What can be done about a folder that is not as its digests say."""
    return (
        f"To keep it as it is, delete '{shown(written, 200)}'; to evaluate anew, delete the folder "
        f"'{shown(written.parent, 200)}' and give the command of the run again."
    )


@functools.cache
def _digest_of_version(file: Path, modified: int, size: int) -> str:
    """Of a file that several readers ask for; `modified` and `size` tell one version of it from another."""
    return _digest(file)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
