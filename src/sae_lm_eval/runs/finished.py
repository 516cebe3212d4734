"""Whether the results in the folder of a run are whole: what cannot be read is set aside, and evaluated anew."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.results.digests import ChangedFile, check_digests, unchecked, write_digests
from sae_lm_eval.results.documents import document_table
from sae_lm_eval.results.results import read_results
from sae_lm_eval.runtime.run_folder import free_path
from sae_lm_eval.schema import NewerVersion

logger = logger_of(__name__)


def finish(unfinished: Path, folder: Path) -> None:
    """Give a folder whose files are all written its digests and its name."""
    write_digests(unfinished)
    os.replace(unfinished, folder)


def set_damaged_aside(output_path: Path, names: Iterable[str]) -> None:
    """Move those of the finished folders `names` that cannot be read out of the way, with a warning.

    Raises, before any is moved, `ChangedFile` for results that can be read and are not as they were written, and
    `NewerVersion` for results of a later release.
    """
    finished = [name for name in names if os.path.lexists(output_path / name)]
    for name, why in [(name, damage_of(output_path / name)) for name in finished]:
        if why is None:
            continue
        aside = free_path(output_path / f".{name}.damaged")
        os.replace(output_path / name, aside)
        logger.warning("The results of '%s' are damaged: set aside as '%s', and evaluated anew. %s", name, aside, why)


def damage_of(folder: Path) -> str | None:
    """Why a finished folder cannot be read, or what it lacks, in a sentence; None where it is whole.

    Raises `ChangedFile` where it can be read and is not as it was written, and `NewerVersion` for results of a later
    release.
    """
    changed: ChangedFile | None = None
    try:
        check_digests(folder)
    except ChangedFile as error:
        changed = error
    except UserError as error:
        return str(error)
    try:
        with unchecked():
            results = read_results(folder)
            for task in results.tasks:
                count = len({sample["doc_id"] for sample in results.whole_samples(task)})
                expected = min(results.sizes[task], results.documents[task])
                if count < expected:
                    return f"It has {count} of {expected} documents of {task}."
            if changed is not None:
                document_table(results)
    except NewerVersion:
        raise
    except (UserError, OSError) as error:
        return str(error)
    if changed is not None:
        raise changed
    return None
