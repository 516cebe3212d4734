"""The folder that holds a dictionary's files: the user's own, or a snapshot of a hub repository."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sae_lm_eval.dictionaries.formats import format_of, refusal
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError, did_you_mean, first_line
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory

LAYER_SUFFIX = ".safetensors"
LAYER_FILE = f"layer_*{LAYER_SUFFIX}"


def weights_folder(spec: SaeSpec, wanted: str) -> tuple[Path, str | None]:
    """The local folder that holds `wanted`, and the hub commit it came from (None for a folder of the user's).

    Raises `UserError` where there is no such folder, repository, revision or id, naming the ids there are.
    """
    local = spec.folder
    if local is not None:
        refuse_revision(spec)
        folder = local / (spec.id or "")
        if not (folder / wanted).is_file():
            refuse_other_format(spec, (path.name for path in folder.glob("*")))
            raise UserError(
                none_at(spec, wanted, (p.parent.relative_to(local).as_posix() for p in local.rglob(wanted)))
            )
        return folder, None
    check_repository_name(spec)
    return _hub_folder(spec, wanted)


def layer_files(spec: SaeSpec, beside: str) -> tuple[Path, Path | None, str | None]:
    """The weights of a format with a file a layer, the file `beside` them, None where there is none, and the hub's
    commit, None for a folder of the user's. Other layers are not downloaded.

    Raises `UserError` as `weights_folder` does.
    """
    from huggingface_hub import snapshot_download

    wanted = None if spec.id is None else f"{spec.id}{LAYER_SUFFIX}"
    also = beside if wanted is None else Path(wanted).with_name(beside).as_posix()
    root, commit = spec.folder, None
    if root is not None:
        refuse_revision(spec)
    else:
        check_repository_name(spec)
        with hub_told(spec):
            root = Path(
                snapshot_download(spec.source, revision=spec.revision, allow_patterns=[*filter(None, (wanted, also))])
            )
        commit = root.name
    if wanted is None or not (root / wanted).is_file():
        names = files_below(root) if commit is None else repository_files(spec, root)
        raise UserError(none_at(spec, LAYER_FILE, layers_among(names)))
    return root / wanted, root / also if (root / also).is_file() else None, commit


def refuse_revision(spec: SaeSpec) -> None:
    """Raise `UserError` where a revision of a local folder is asked for."""
    if spec.revision is not None:
        raise UserError(f"'{spec.source}' is a local folder, which has no revision '{spec.revision}'.")


def names_of_files(spec: SaeSpec, folder: Path | None) -> list[str]:
    """The names of all files of a source: of its local `folder`, or else of the hub repository.

    Raises `UserError` where there is no such repository, or the hub refuses it.
    """
    if folder is not None:
        return files_below(folder)
    check_repository_name(spec)
    with hub_told(spec):
        return repository_files(spec)


def files_below(folder: Path) -> list[str]:
    """The names of all files below a folder."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def layers_among(names: Iterable[str]) -> list[str]:
    """The ids of layers among a repository's files."""
    return [name.removesuffix(LAYER_SUFFIX) for name in names if fnmatch(name.rsplit("/", 1)[-1], LAYER_FILE)]


def check_repository_name(spec: SaeSpec) -> None:
    """Raise `UserError` where a source that is no folder cannot be a hub repository."""
    if spec.source.count("/") != 1 or spec.source.startswith((".", "/", "~")):
        raise UserError(
            f"'{spec.source}' is neither a folder here nor a SAELens release nor a hub repository org/name."
        )


def _hub_folder(spec: SaeSpec, wanted: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    prefix = f"{spec.id}/" if spec.id else ""
    with hub_told(spec):
        snapshot = Path(
            snapshot_download(
                spec.source,
                revision=spec.revision,
                allow_patterns=[f"{prefix}*.json", f"{prefix}*.safetensors", f"{prefix}{wanted}"],
                ignore_patterns=[f"{prefix}*/*"],  # a star goes on below folders, where other dictionaries are
            )
        )
    folder = snapshot / (spec.id or "")
    if not (folder / wanted).is_file():
        files = repository_files(spec, snapshot)
        refuse_other_format(spec, (name.removeprefix(prefix) for name in files if name.startswith(prefix)))
        raise UserError(
            none_at(
                spec, wanted, (name.removesuffix(wanted).rstrip("/") for name in files if name.endswith(f"/{wanted}"))
            )
        )
    return folder, snapshot.name


@contextlib.contextmanager
def hub_told(spec: SaeSpec) -> Iterator[None]:
    """Inside the scope, what the hub refuses of the repository of `spec` is told as a `UserError`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of its HTTP client, which is no OSError  # pyright: ignore[reportPrivateImportUsage]
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"'{spec.source}' is no name of a hub repository: {first_line(error)}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"The hub repository '{spec.source}' has no revision '{spec.revision}'.") from error
    except GatedRepoError as error:
        raise UserError(f"The hub repository '{spec.source}' is gated: ask for access on its page, log in.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"There is no hub repository '{spec.source}' (or it is gated and you have no access), "
            f"no SAELens release and no folder of that name."
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"The hub does not give the files of '{spec.source}': {first_line(error)}") from error
    except (LocalEntryNotFoundError, OSError, HTTPError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise UserError(f"The hub repository '{spec.source}' is not in the local cache, and {why}.") from error


def repository_files(spec: SaeSpec, snapshot: Path | None = None) -> list[str]:
    """The files of the repository; where the hub cannot be asked, those of it that are in the cache."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        return HfApi().list_repo_files(spec.source, revision=spec.revision)
    except (OSError, HTTPError):
        if snapshot is None:
            snapshot = Path(snapshot_download(spec.source, revision=spec.revision, local_files_only=True))
        return files_below(snapshot)


def refuse_other_format(spec: SaeSpec, names: Iterable[str]) -> None:
    """Raise `UserError` where a folder with files of these `names` is in another format than that of the loader."""
    folder_format = format_of(names)
    if folder_format is not None and folder_format.loader != spec.loader:
        raise UserError(refusal(spec, folder_format))


def read_safetensors(spec: SaeSpec, file: Path) -> dict[str, Any]:
    """The tensors of a file, by name. They are backed by it: what is never looked at is never read.

    Raises `UserError` where it cannot be read, and `HostMemoryError` where memory does not suffice.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:
        raise_if_out_of_memory(error)
        if not isinstance(error, SafetensorError | OSError):
            raise
        raise UserError(
            f"The weights of '{spec}' are truncated or corrupt ({file.name}: {error}): download them again."
        ) from error


def pickle_refusal(spec: SaeSpec) -> UserError:
    return UserError(
        f"The weights of '{spec}' are a pickle that holds more than tensors, which could run code: refused. "
        f"Convert them to safetensors."
    )


def none_at(spec: SaeSpec, wanted: str, ids: Iterable[str]) -> str:
    """That `spec` is not among `ids`, the folders with a file `wanted`, and which are nearest to it."""
    where = f"#{spec.id}" if spec.id else "at its top"
    kind = "a file" if wanted == LAYER_FILE else "a folder with"
    said = f"'{spec.source}' holds no dictionary {where} ({kind} {wanted})."
    ids = sorted(name for name in ids if name not in ("", "."))
    if not ids:
        return f"{said} It holds none at all."
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return f"{said}{did_you_mean(spec.id or '', ids)} It has #{', #'.join(ids[:8])}{more}."


def quietly(function: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
    """What `function` returns, and what it warned of, once each, as remarks instead of on the screen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    said = (" ".join(str(w.message).split()) for w in caught if w.category is UserWarning)
    # How the model should be loaded is what activation maps are for.
    return result, tuple(dict.fromkeys(text for text in said if "model_from_pretrained_kwargs" not in text))
