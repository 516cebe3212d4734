"""Whether the results in the folder of a run are whole: what is damaged is told, set aside, and evaluated anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.results.digests import check_digests, write_digests
from sae_lm_eval.results.results import read_results
from sae_lm_eval.schema import NewerVersion

logger = logger_of(__name__)


def finish(unfinished: Path, folder: Path) -> None:
    """Give a folder whose files are all written its digests and its name."""
    write_digests(unfinished)
    os.replace(unfinished, folder)


def set_damaged_aside(output_path: Path, names: Iterable[str]) -> None:
    """Move the damaged ones of the finished folders `names` out of the way, with a warning.

    Raises `NewerVersion` for results of a later release.
    """
    for name in names:
        folder = output_path / name
        why = damage_of(folder) if os.path.lexists(folder) else None
        if why is None:
            continue
        aside = output_path / f".{name}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        logger.warning(
            "The results of '%s' are damaged: set aside as '%s', and evaluated anew. %s", name, aside.name, why
        )


def damage_of(folder: Path) -> str | None:
    """Why a finished folder cannot be read, or what it lacks, in a sentence; None where it is whole.

    Raises `NewerVersion` for results of a later release.
    """
    try:
        check_digests(folder)
        results = read_results(folder)
        for task in results.tasks:
            found = len({sample["doc_id"] for sample in results.whole_samples(task)})
            expected = min(results.sizes[task], results.documents[task])
            if found < expected:
                return f"It has {found} of {expected} documents of {task}."
    except NewerVersion:
        raise
    except UserError as error:
        return str(error)
    return None
