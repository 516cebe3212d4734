"""Files that a user asked for. They replace what the same command made before, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import shown, without_waiting
from sae_lm_eval.runtime.placed_files import place_files

OTHERWISE = "Name another place."
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
BINARY = (".parquet", ".png")
# What is in the files of each command.
LEADERBOARD_MARK, SAEBENCH_MARK = "sae-lm-eval leaderboard", "none: sae_lm_eval"


def check_place(folder: Path, names: Iterable[str], mark: str) -> None:
    """Raise `UserError` unless files of these names can be made in `folder`; what is there must hold the `mark`."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"Nothing can be written to '{shown(nearest, 200)}'. {OTHERWISE}")
    for path in (folder / name for name in names):
        if path.is_symlink():
            raise UserError(f"'{shown(path, 200)}' is a symbolic link, which is not written through. {OTHERWISE}")
        if path.exists() and not _has(path, mark):
            raise UserError(f"'{shown(path, 200)}' is there, and this command did not make it. {OTHERWISE}")


def _has(path: Path, mark: str) -> bool:
    try:
        with open(path, "rb", opener=without_waiting) as opened:
            return mark.encode() in opened.read()
    except OSError:
        return False


def refuse_tokens(contents: Mapping[str, bytes]) -> None:
    """Raise `UserError` where a file for others holds what looks like a token of the Hub."""
    for name, content in contents.items():
        if not name.endswith(BINARY) and TOKEN.search(content):
            raise UserError(
                f"'{shown(name, 200)}' would hold what looks like a token of the Hub, from the results: it is not made."
            )


def write_marked(folder: Path, contents: Mapping[str, bytes], mark: str, what: str) -> None:
    """Write files that hold the `mark`, each whole or not at all. Raises as `check_place` and `refuse_tokens`."""
    refuse_tokens(contents)
    check_place(folder, contents, mark)
    place_files(contents, folder, what=what, otherwise=OTHERWISE)
