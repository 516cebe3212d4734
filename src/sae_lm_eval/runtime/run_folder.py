"""The folder of a run: held by one run at a time, asked the same thing every time, never half written."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.files.reading import shown
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory
from sae_lm_eval.runtime.journal import DiskError, Journal
from sae_lm_eval.runtime.processes import agreed, rank
from sae_lm_eval.runtime.run_files import GROUPS, IDENTITY, SETTINGS, read_record
from sae_lm_eval.schema import KEY, VERSION, version_of

ADDED = "added"
LOCK, LOG, REPORT = ".lock", "run.log", "report"
WRITTEN_FOLDERS = (REPORT, "where")  # which are written anew, unlike those of results
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it. Raises `UserError` where it cannot be made or another process holds it.

    A disk that is full inside the scope is told as a `DiskError`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"Another process is at work in '{folder}'. Wait for it, or give another --output_path."
        ) from None
    except OSError as error:
        raise UserError(
            f"The folder '{folder}' cannot be made: {error.strerror}. Give another --output_path."
        ) from error
    try:
        yield
    except OSError as error:
        if not folder.is_dir():
            raise DiskError(f"The folder '{folder}' was removed or replaced while the run wrote to it.") from error
        raise_if_out_of_memory(error)
        if error.errno not in FULL:
            raise
        raise DiskError(
            f"Nothing more can be written to '{folder}': {error.strerror}. Free some space; the same command continues."
        ) from error
    except (MemoryError, RuntimeError) as error:
        raise_if_out_of_memory(error)
        raise
    finally:
        lock.release()


def check_folder(folder: Path, flag: str = "--output_path") -> None:
    """Raise `UserError` where nothing can be written to `folder`, which need not be there yet; `flag` names it."""
    try:
        os.lstat(folder)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or holds what none may
        if not isinstance(error, NotADirectoryError | PermissionError):
            raise UserError(
                f"'{shown(folder, 200)}' can be no folder: {first_line(error)}. Give another {flag}."
            ) from error
    for place in (folder, *folder.parents, Path()):
        if place.exists():
            if not place.is_dir():
                raise UserError(f"'{folder}' cannot be made: '{place}' is a file. Give another {flag}.")
            if not os.access(place, os.W_OK | os.X_OK):
                raise UserError(f"Nothing can be written to '{place}'. Give another {flag}.")
            return


def refuse_links(folder: Path) -> None:
    """Raise `UserError` where what a run writes is a symbolic link, a pipe or a device: it would go somewhere else.

    Folders of finished results may be links, since they are only read.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith(".") and path.name not in WRITTEN_FOLDERS:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            what = "a symbolic link" if path.is_symlink() else "neither a file nor a folder"
            raise UserError(
                f"'{shown(path, 200)}' is {what}, and a run does not write through it. Remove it, or give another "
                "--output_path."
            )


def journal_of(process: int | str = 0) -> str:
    """The journal's file, one for each process of a run."""
    return f".answers.{process}.sqlite"


def free_path(path: Path) -> Path:
    """The path, with a number where there is something already."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not os.path.lexists(candidate))


def write_json(file: Path, value: Any) -> None:
    """Write a file that is there whole or not at all."""
    unfinished = file.with_name(f".{file.name}.part")
    unfinished.write_text(json.dumps(value, indent=2))
    os.replace(unfinished, file)


def remember(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down what a run was asked for, with the version of the schema.

    Variants may be added to those of before; `added` in the record are those of the last time.

    Raises `UserError` where the folder holds a run that was asked otherwise, or that a newer package wrote.
    """
    file = folder / SETTINGS
    new = json.loads(json.dumps({KEY: VERSION, **settings}, default=str))
    old = read_record(file, dict[str, Any])
    if old is None:
        write_json(file, new)
        return
    version_of(old, str(file))
    added = _added(old.get("variants"), new.get("variants"))
    free = (KEY, ADDED) if added is None else (KEY, ADDED, "variants")
    other = [name for name in {**old, **new} if old.get(name) != new.get(name) and name not in free]
    if other:
        difference = _difference(old.get(other[0]), new.get(other[0]))
        raise UserError(
            f"'{folder}' holds a run with other {', '.join(other)}: {difference}. "
            f"Give another --output_path, or delete it."
        )
    if added:
        write_json(file, {**new, ADDED: added})


@contextmanager
def remembered(folder: Path, settings: Mapping[str, Any], names: Iterable[str]) -> Iterator[None]:
    """A scope of a run whose models are `names`, of which `remember` has written down what it was asked.

    Where that is new, and a `UserError` ends the scope before anything was answered, the folder forgets it: the mended
    command is no other run. Raises as `remember`.
    """
    is_new = not (folder / SETTINGS).exists()
    agreed(lambda: remember(folder, settings))
    try:
        yield
    except UserError:
        if is_new and rank() == 0 and not _has_answers(folder, names):
            for record in (SETTINGS, GROUPS, IDENTITY):
                (folder / record).unlink(missing_ok=True)
            delete_journals(folder)
        raise


def _has_answers(folder: Path, names: Iterable[str]) -> bool:
    if any((folder / name).exists() for name in names):
        return True
    for file in folder.glob(journal_of("*")):
        with closing(Journal(file)) as journal:
            if not journal.is_empty():
                return True
    return False


def _added(old: Any, new: Any) -> list[str] | None:
    """The names of the variants that are new; None where one of before is missing or was asked otherwise."""
    try:
        before, now = ({variant["name"]: variant["arguments"] for variant in variants} for variants in (old, new))
    except (TypeError, KeyError):
        return None
    return [name for name in now if name not in before] if before.items() <= now.items() else None


def added_names(folder: Path) -> tuple[str, ...]:
    """The variants that were added last to the run in a folder; none where it was asked once, or is no run."""
    record = read_record(folder / SETTINGS, dict[str, Any])
    added = None if record is None else record.get(ADDED)
    return tuple(map(str, added)) if isinstance(added, list) else ()


def _difference(old: Any, new: Any) -> str:
    """What differs, down to the first entry that does."""
    if isinstance(old, list) and isinstance(new, list):
        only_new, only_old = (
            [entry for entry in mine if entry not in others] for mine, others in ((new, old), (old, new))
        )
        entry = (only_old or only_new or [None])[0]
        if isinstance(entry, dict) and "name" in entry:
            if only_new and only_old:
                return f"'{shown(entry['name'])}' was asked for with {shown(entry.get('arguments'), 300)} there"
            return f"'{shown(entry['name'])}' is only {'there' if only_old else 'here'}"
    return f"{shown(repr(old), 300)} there, {shown(repr(new), 300)} here"


def check_written(folder: Path, lines: Mapping[str, int]) -> None:
    """Raise `DiskError` unless the results and so many samples of each task are there: lm_eval only logs a failure."""
    try:
        (results,) = folder.glob("*/results_*.json")
        json.loads(results.read_text(encoding="utf-8"))
        for task, expected in lines.items():
            (samples,) = folder.glob(f"*/samples_{task}_[0-9]*.jsonl")
            whole = [line for line in samples.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
            if len(whole) != expected:
                raise ValueError(f"{len(whole)} of {expected} samples of {task}")
    except (OSError, ValueError) as error:
        free = shutil.disk_usage(folder.parent).free / 1e9
        raise DiskError(
            f"The results of '{folder.name[1:]}' were not written whole ({first_line(error)}; {free:.1f} GB are free "
            f"on the disk). Free some space; the same command continues."
        ) from error


def delete_journals(folder: Path) -> None:
    """Remove what was kept to continue by."""
    for journal in folder.glob(journal_of("*")):
        journal.unlink()
