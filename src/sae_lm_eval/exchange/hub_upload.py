"""Files to a data set on the Hugging Face Hub, through huggingface_hub's public API."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # of its HTTP client, which is another one in its versions 1 and 2  # pyright: ignore[reportPrivateImportUsage]
)
from huggingface_hub.utils import validate_repo_id

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.exchange.new_files import OTHERWISE, check_place
from sae_lm_eval.files.reading import shown
from sae_lm_eval.runtime.placed_files import place_files

CARD = "README.md"
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
    """Write what would be uploaded; of before, what is no longer made goes. Raises as `check_dataset_folder`."""
    check_dataset_folder(folder)
    place_files(files, folder, what="The data set", otherwise=OTHERWISE)
    for path in (*folder.glob("*"), *folder.glob("figures/*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()


def upload(folder: Path, repo: str, message: str) -> str:
    """Upload a folder in one commit to a data set, which is made private where there is none; its address.

    Raises `UserError` where the Hub cannot be reached or refuses.
    """
    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        made = api.upload_folder(folder_path=folder, repo_id=repo, repo_type="dataset", commit_message=message)
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"'{shown(repo)}' was not uploaded: {first_line(error)} What would be is in '{shown(folder, 200)}'; the "
            "same command tries again."
        ) from error
    return str(made.commit_url)
