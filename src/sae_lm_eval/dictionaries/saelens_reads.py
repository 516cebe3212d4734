"""How SAELens' converters get at files of the hub: from the cache where they are in it, and with a record of each.

SAELens asks the hub for the shapes in a file of weights that it downloads a moment later; here they are read from that
file. It has no public argument for either, so that this is the one module that sets names of SAELens' own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lm_eval.dictionaries.saelens_package import import_saelens
from sae_lm_eval.errors import first_line

# SAELens' names are the process's: two threads that load at once would each put back what the other one set.
LOCK = threading.RLock()


@dataclass
class Reads:
    """The files that were asked for: `paths` of those that were had, by name in the repository, and the last `failure`.

    A failure is the repository, the file and what was raised; SAELens goes on after some.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    failure: tuple[str, str, Exception] | None = None

    def path(self, name: str) -> Path | None:
        """The file whose name in the repository ends in `name`."""
        return next((path for file, path in self.paths.items() if file.endswith(name)), None)


@contextlib.contextmanager
def recorded_reads() -> Iterator[Reads]:
    """Within the scope, what SAELens' converters read of the hub is recorded, and shapes come from cached files."""
    import_saelens()
    from unittest.mock import patch  # brings asyncio with it

    from sae_lens.loading import pretrained_sae_loaders as loaders

    reads = Reads()
    with LOCK:
        download = _recording(loaders.hf_hub_download, reads)

        def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
            return shapes_in(Path(download(repo_id, filename)))

        with (
            patch.object(loaders, "hf_hub_download", download),
            patch.object(loaders, "get_safetensors_tensor_shapes", shapes),
        ):
            yield reads


def _recording(download: Callable[..., str], reads: Reads) -> Callable[..., str]:
    def recording(repo_id: str, filename: str, *args: Any, subfolder: str | None = None, **kwargs: Any) -> str:
        file = f"{subfolder}/{filename}" if subfolder else filename
        try:
            path = download(repo_id, file, *args, **kwargs)
        except Exception as error:
            reads.failure = (repo_id, file, error)
            raise
        reads.paths[file] = Path(path)
        return path

    return recording


def shapes_in(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors of a safetensors file, by name, from its header alone."""
    from safetensors import safe_open

    with safe_open(path, "np") as weights:
        return {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118


def why_not(repo: str, file: str, error: Exception, spec: object) -> str:
    """A sentence on why `file` of the hub repository `repo`, which `spec` needs, could not be had."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return f"The hub repository '{repo}', which '{spec}' needs, is gated: ask for access on its page, and log in."
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no hub repository '{repo}', which '{spec}' needs (or it is private and you have no access)."
    if isinstance(error, RemoteEntryNotFoundError):
        return f"The hub repository '{repo}' has no file '{file}', which '{spec}' needs."
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return f"'{file}' of the hub repository '{repo}', which '{spec}' needs, is not in the local cache, and {why}."
    return f"'{file}' of the hub repository '{repo}', which '{spec}' needs, cannot be had: {first_line(error)}"
