"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import shown


def refuse_linked(path: Path, otherwise: str) -> None:
    """Raise `UserError` where `path`, which the user did not name, is a symbolic link: it leads somewhere else."""
    if os.path.islink(path):  # False for what is too long to be a path
        raise UserError(f"'{shown(path, 200)}' is a symbolic link, which is not written through. {otherwise}")


def place_files(contents: Mapping[str, bytes], folder: Path, *, what: str, otherwise: str) -> None:
    """Write files by their names within `folder`, which is made where it is missing.

    Everything is made in a folder beside them first and then moved, file by file: no file is ever half written, and a
    file that is a symbolic link is replaced. Raises `UserError` where the folder cannot be made or written, or a folder
    in it is a symbolic link, with what to do `otherwise`.
    """
    for inner in {parent for name in contents for parent in Path(name).parents}:
        if inner.parts:
            refuse_linked(folder / inner, otherwise)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as staged:
            for name, content in contents.items():
                path = Path(staged) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            for name in contents:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(staged) / name).replace(folder / name)
    except OSError as error:
        raise UserError(f"{what} cannot be written to '{folder}': {error.strerror}. {otherwise}") from error
