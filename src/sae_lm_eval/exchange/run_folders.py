"""Where runs lie, and what they are called beside one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import at_home, is_folder, shown
from sae_lm_eval.results.find import has_results, natural


def run_folders(paths: Sequence[str | Path]) -> list[Path]:
    """The folders that hold a baseline's and variants' results: those named, or the ones directly in them."""
    folders: dict[Path, Path] = {}
    for name in paths:
        path = at_home(name)
        if not is_folder(path):
            raise UserError(f"There is no folder '{shown(path, 200)}'.")
        runs = [folder for folder in (path, *sorted(path.iterdir(), key=natural)) if _is_run(folder)]
        if not runs:
            raise UserError(
                f"Neither '{shown(path, 200)}' nor a folder directly in it holds the results of a run: a baseline and "
                "variants, each in a folder of its own."
            )
        for folder in runs[:1] if runs[0] == path else runs:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def _is_run(folder: Path) -> bool:
    try:
        return folder.is_dir() and sum(has_results(path) for path in folder.iterdir() if path.is_dir()) > 1
    except OSError:
        return False


def run_names(folders: Sequence[Path]) -> dict[Path, str]:
    """The folders' names, with that of the folder around where two are called alike, or else the whole path."""

    def around(folder: Path) -> str:
        return f"{folder.resolve().parent.name}/{folder.resolve().name}"

    names = {folder: folder.resolve().name for folder in folders}
    for longer in (around, str):
        counts = Counter(names.values())
        names = {folder: longer(folder) if counts[name] > 1 else name for folder, name in names.items()}
    return names
