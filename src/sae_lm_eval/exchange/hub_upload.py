"""Files to a data set on the Hugging Face Hub, through huggingface_hub's public API."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from glob import escape
from hashlib import sha256
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,  # of its HTTP client, which is another one in its versions 1 and 2  # pyright: ignore[reportPrivateImportUsage]
)
from huggingface_hub.utils import validate_repo_id

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.exchange.new_files import OTHERWISE, check_place
from sae_lm_eval.files.reading import shown, without_waiting
from sae_lm_eval.runtime.placed_files import place_files

CARD = "README.md"
HASHES = "hashes.json"
MARK = "made by sae-lm-eval export"  # in the card


def check_repo(repo: str) -> None:
    """Raise `UserError` where `repo` cannot name a data set of the Hub."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"'{shown(repo)}' names no data set of the Hub, as org/name does: {first_line(error)}"
        ) from None
    if repo.count("/") != 1:
        raise UserError(f"'{shown(repo)}' names no data set of the Hub: give org/name or user/name.")


def has_token() -> bool:
    """Whether this machine knows a token of the Hub."""
    return get_token() is not None


def check_dataset_folder(folder: Path) -> None:
    """Raise `UserError` where a folder cannot be written, or holds what this command did not make."""
    check_place(folder, [CARD], MARK)
    if folder.is_dir() and not (folder / CARD).exists() and any(folder.iterdir()):
        raise UserError(f"'{shown(folder, 200)}' holds files that this command did not make. {OTHERWISE}")


def write_folder(files: Mapping[str, bytes], folder: Path) -> None:
    """Write what would be uploaded; what was made before, is as it was made and is no longer made goes.

    Raises as `check_dataset_folder`.
    """
    check_dataset_folder(folder)
    before = made_before(folder / HASHES)
    place_files(files, folder, what="The data set", otherwise=OTHERWISE)
    for name, digest in before.items():
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve())
        if name not in files and inside and path.is_file() and sha256(path.read_bytes()).hexdigest() == digest:
            path.unlink()


def made_before(path: Path) -> dict[str, str]:
    """The SHA-256 of the files that this command made, by name, from the list beside them; none where it is no list."""
    try:
        with open(path, "rb", opener=without_waiting) as opened:
            files = json.loads(opened.read())["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {name: str(digest) for name, digest in files.items()} if isinstance(files, dict) else {}


def upload(folder: Path, repo: str, message: str, names: Iterable[str]) -> str:
    """Upload files of a folder in one commit to a data set, which is made private where there is none; its address.

    Of what is there, what this command made and no longer makes goes. Raises `UserError` where the Hub cannot be
    reached or refuses.
    """
    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        stale = made_before(_uploaded_list(api, repo)).keys() - {*names}
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            repo_type="dataset",
            commit_message=message,
            allow_patterns=[escape(name) for name in names],
            delete_patterns=[escape(name) for name in sorted(stale)] or None,
        )
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"'{shown(repo)}' was not uploaded: {first_line(error)} What would be is in '{shown(folder, 200)}'; the "
            "same command tries again."
        ) from error
    return str(commit.commit_url)


def _uploaded_list(api: HfApi, repo: str) -> Path:
    """The list of files of the data set as it stands on the Hub; a path without a file where it has none."""
    try:
        return Path(api.hf_hub_download(repo, HASHES, repo_type="dataset"))
    except EntryNotFoundError:
        return Path(HASHES, "none")
