"""Fixtures that several test files share."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook
from pretend_device import pretended_device

# A shell that starts the tests in the background has interrupts ignored, here and in all that is started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests run whole commands, or many models to the end: most of the time, in a fifth of the tests.
WHOLE_COMMANDS = frozenset(
    f"test_{name}"
    for name in (
        *("compare", "curve", "demo", "documents", "examples", "export", "foreign_files", "leaderboard", "own_in_runs"),
        *("peft_variants", "population", "recovery", "registration", "release_statements", "released"),
        *("report", "report_commands", "run", "run_identity", "scores", "several_models", "talk_cli"),
        *("where", "where_latents", "where_questions", "where_truth"),
    )
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="pretend", help="where tests/test_device.py runs models: pretend, cpu, cuda")
    parser.addoption(
        "--shapes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check annotations, those of shapes among them; --no-shapes is for timings",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--shapes"):  # before a test file imports what is checked
        rooms = ["sae_lm_eval.splicing", "sae_lm_eval.scoring", "sae_lm_eval.fidelity"]
        install_import_hook(rooms, "annotation_checks.checked")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in WHOLE_COMMANDS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where models are run; by default a device that only pretends to be one."""
    name = request.config.getoption("--device")
    if name == "pretend":
        with pretended_device() as device:
            yield device
    else:
        yield torch.empty(0, device=name).device  # with the number that tensors on it name


HUB = Path(__file__).parents[2] / "shared" / "hub"


@contextlib.contextmanager
def serving(root: Path) -> Iterator[str]:
    """The address of a hub on loopback over the folder `root`: models below `models`, data sets below `datasets`."""
    if not (HUB / "serve.py").is_file():
        pytest.skip(f"NOT TESTED ON REAL INPUT: there is no hub at {HUB}")
    command = [sys.executable, str(HUB / "serve.py"), str(root), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a hub on loopback with small real models, dictionaries and benchmark data.

    It is set as HF_ENDPOINT for the commands that tests start; libraries imported before read it no more.
    """
    with serving(HUB / "root") as address:
        yield address


def hub_environment_of(address: str, home: Path) -> dict[str, str]:
    """The environment of a command that is to see the hub at `address`, with the cache `home`."""
    return {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.fixture(scope="session")
def hub_environment(hub: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a command that is to see that hub, with a cache of its own."""
    return hub_environment_of(hub, tmp_path_factory.mktemp("hf_home"))


# Fixtures of the tests of other frameworks, which `make test-frameworks` installs. They stand here, since two files of
# the name conftest.py are one module to whoever imports it.


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
