"""Once lm_eval is imported, tell it of `sae_hf` and of this package's tasks, so that nobody has to pass a flag.

At interpreter start a .pth file puts a hook on `sys.meta_path`; its text stands in pyproject.toml. The hook comes
here when one of lm_eval's two modules below is looked for. Nothing here imports torch, or the rest of the package.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def find_and_follow(hook: Any, name: str, path: Any, target: Any) -> ModuleSpec | None:
    """Leave finding the module to the finders behind the hook, and have its step run after it."""
    for finder in sys.meta_path[sys.meta_path.index(hook) + 1 :]:
        # Finders of old know only find_module; Python passes them over as well.
        spec: Any = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
        if spec is not None:
            if hasattr(spec.loader, "exec_module"):
                spec.loader = _ThenStep(spec.loader, STEPS[name])
            return spec
    return None


class _ThenStep:
    """A module's own loader, and a step after it. A failing step is told of, and the import goes on."""

    def __init__(self, loader: Any, step: Any) -> None:
        self.loader = loader
        self.step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def exec_module(self, module: Any) -> None:
        # From here on the module looks as if nobody had stood between it and its loader.
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        try:
            self.step(module)
        except Exception as error:
            logging.getLogger("sae_lm_eval").warning(
                "sae_lm_eval is not fully registered with lm_eval: %s: %s", type(error).__name__, error
            )


def _register_model(models: ModuleType) -> None:
    from lm_eval.api import registry

    # Releases that load plugins read the entry point of this package by themselves.
    if not hasattr(registry, "load_plugins") and "sae_hf" not in registry.model_registry:
        registry.model_registry.register("sae_hf", target="sae_lm_eval.harness.model:SaeHFLM")


def _register_tasks(manager: ModuleType) -> None:
    ours = tasks_folder()
    task_manager = vars(manager)["TaskManager"]
    init = task_manager.__init__
    signature = inspect.signature(init)
    # Now rather than in the middle of an evaluation that asks for none of our tasks.
    missing = {"include_path", "include_defaults"}.difference(signature.parameters)
    if missing:
        raise TypeError(f"its TaskManager takes no {' and no '.join(sorted(missing))}")

    @functools.wraps(init)
    def with_our_tasks(self: Any, *args: Any, **kwargs: Any) -> None:
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments["include_path"]
        if call.arguments["include_defaults"]:
            theirs = given if isinstance(given, (list, tuple)) else [given] if given else []
            # Later folders win: the user's own come after ours.
            call.arguments["include_path"] = [ours, *theirs]
        init(*call.args, **call.kwargs)
        self.include_path = given

    task_manager.__init__ = with_our_tasks


def tasks_folder() -> str:
    package = Path(__file__).parent
    # In a wheel the tasks lie in the package, in a checkout at its top.
    for folder in (package / "tasks", package.parents[1] / "tasks"):
        if folder.is_dir():
            return str(folder)
    raise FileNotFoundError(f"there is no tasks folder at {package / 'tasks'}")


STEPS = {"lm_eval.models": _register_model, "lm_eval.tasks.manager": _register_tasks}
