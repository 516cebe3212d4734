"""`sae-lm-eval doctor`: what this installation and machine have, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from sae_lm_eval.errors import error_sentence

PACKAGES = ("sae-lm-eval", "lm-eval", "torch", "transformers", "sae-lens", "transformer-lens", "huggingface-hub")
GB = 10**9
SECONDS = 5  # to wait for the hub
Finding = tuple[str, str, bool]  # what was looked at, what was found, whether it is as it should be


def doctor() -> None:
    """Check versions, devices, hub, cache and tasks, and what lm_eval's `--model sae_hf` resolves to.

    The exit code is 1 if something is wrong.
    """
    sound = True
    for find in EXAMINATIONS:
        for name, value, fine in find():
            print(f"{name:<18}{'' if fine else 'WRONG: '}{value}", flush=True)
            sound &= fine
    if not sound:
        raise typer.Exit(1)


def check_versions() -> Iterator[Finding]:
    """Of Python and the packages that numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    yield "Python", f"{platform.python_version()}, {sys.executable}", True
    for package in PACKAGES:
        try:
            yield package, version(package), True
        except PackageNotFoundError:
            yield package, "is not installed: pip install it", False


def devices() -> Iterator[Finding]:
    """What torch can compute on."""
    import psutil

    memory = psutil.virtual_memory()
    yield "CPU", f"{os.cpu_count()} cores, {memory.available / GB:.1f} of {memory.total / GB:.1f} GB are free", True
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"cuda:{index}", f"{name}, {free / GB:.1f} of {total / GB:.1f} GB are free", True
    if not count:
        gpu = "mps" if torch.backends.mps.is_available() else f"none that torch {torch.__version__} finds"
        yield "GPU", gpu, True


def hub() -> Iterator[Finding]:
    """Whether models and data can be downloaded, and where they go."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield "hub", "is not asked: HF_HUB_OFFLINE is set, and what is in the cache is used", True
    else:
        yield ("hub", *_reached(constants.ENDPOINT))
    cache = Path(constants.HF_HUB_CACHE)
    there = next(place for place in (cache, *cache.parents) if place.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    yield "cache", f"{cache}, {free / GB:.1f} GB are free{'' if writable else ', and nothing can be written'}", writable


def _reached(address: str) -> tuple[str, bool]:
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(f"{address}/api/models?limit=1"), timeout=SECONDS):
            return f"{address} answers", True
    except HTTPError:
        return f"{address} answers", True  # a mirror need not know that page
    except (URLError, OSError, ValueError) as error:
        return f"{address} does not answer ({error_sentence(error)}): only what is in the cache can be used", False


def plugin() -> Iterator[Finding]:
    """Whether lm_eval knows the model and the tasks of this package without a flag."""
    active = "SaeLmEvalHook" in (type(finder).__name__ for finder in sys.meta_path)
    off = os.environ.get("SAE_LM_EVAL_AUTOLOAD") == "0"
    absent = "is not active: install the package with pip" if not off else "is off: SAE_LM_EVAL_AUTOLOAD is 0"
    yield "start-up hook", "is active" if active else absent, active
    from sae_lm_eval.runs.task_index import task_names

    names = task_names()
    yield "tasks", f"{len(names):,} names, {sum(name.startswith('sae_') for name in names)} of them sae_...", True
    yield ("sae_hf", *_resolved())


def _resolved() -> tuple[str, bool]:
    try:
        import lm_eval.models as models  # which registers them
        from lm_eval.api.registry import get_model

        model_class: Any = get_model("sae_hf")
    except Exception as error:  # whatever a broken installation raises
        return f"lm_eval does not find it ({error_sentence(error)})", False
    file = sys.modules[model_class.__module__].__file__
    return f"{model_class.__module__}.{model_class.__name__} of {file}", bool(models)


EXAMINATIONS: Sequence[Callable[[], Iterator[Finding]]] = (check_versions, devices, hub, plugin)
