"""Fixtures of the tests of other frameworks, which `make test-frameworks` installs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str | None, Path]]:
    """The model that knows colours, and its dictionaries."""
    from letters import save

    return save(tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="session")
def stories(hub: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hub's stories3M and its dictionaries."""
    from huggingface_hub import snapshot_download

    folder = tmp_path_factory.mktemp("stories")
    for repository in ("stories3M", "stories/sae-stories3M"):
        snapshot_download(repository, endpoint=hub, local_dir=folder / repository, cache_dir=folder / "cache")
    return folder
