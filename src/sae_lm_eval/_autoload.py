# Runs at interpreter start, from a .pth file that holds this text, so that `lm_eval` knows this package
# without a flag. It imports nothing but the standard library, and nothing at all until lm_eval is imported.
# SAE_LM_EVAL_AUTOLOAD=0 switches it off.
import os
import sys


class _SaeLmEvalHook:
    """A meta-path finder that leaves finding to those behind it, and has a step run after certain modules."""

    def __init__(self, steps):
        self.steps = steps

    def find_spec(self, name, path=None, target=None):
        if name not in self.steps or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _ThenStep(spec.loader, self.steps[name])
                return spec
        return None


class _ThenStep:
    """A module's own loader, and a step after it. A failing step is told of, and the import goes on."""

    def __init__(self, loader, step):
        self.loader = loader
        self.step = step

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def exec_module(self, module):
        # From here on the module looks as if nobody had stood between it and its loader.
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        try:
            self.step(module)
        except Exception as error:
            import logging

            logging.getLogger("sae_lm_eval").warning(
                "sae_lm_eval is not fully registered with lm_eval (%s: %s); the rest of lm_eval works as ever.",
                type(error).__name__,
                error,
            )


def _register_model(models):
    from lm_eval.api import registry

    # Releases that load plugins read the entry point of this package by themselves.
    if not hasattr(registry, "load_plugins") and "sae_hf" not in registry.model_registry:
        registry.model_registry.register("sae_hf", target="sae_lm_eval.adapter:SaeHFLM")


def _register_tasks(manager):
    import functools
    import inspect

    ours = _tasks_folder()
    init = manager.TaskManager.__init__
    signature = inspect.signature(init)
    # Now rather than in the middle of an evaluation that asks for none of our tasks.
    missing = {"include_path", "include_defaults"}.difference(signature.parameters)
    if missing:
        raise TypeError(f"its TaskManager takes no {' and no '.join(sorted(missing))}")

    @functools.wraps(init)
    def with_our_tasks(self, *args, **kwargs):
        call = signature.bind(self, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments["include_path"]
        if call.arguments["include_defaults"]:
            theirs = given if isinstance(given, (list, tuple)) else [given] if given else []
            # Later folders win: the user's own come after ours.
            call.arguments["include_path"] = [ours, *theirs]
        init(*call.args, **call.kwargs)
        self.include_path = given

    manager.TaskManager.__init__ = with_our_tasks


def _tasks_folder():
    from importlib.util import find_spec

    spec = find_spec("sae_lm_eval")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("sae_lm_eval is not installed")
    package = os.path.dirname(spec.origin)
    # In a wheel the tasks lie in the package, in a checkout at its top.
    folders = [os.path.join(package, "tasks"), os.path.normpath(os.path.join(package, "..", "..", "tasks"))]
    for folder in folders:
        if os.path.isdir(folder):
            return folder
    raise FileNotFoundError(f"there is no tasks folder at {folders[0]}")


# A second copy of the .pth file (a user's site-packages beside a virtual environment's) has nothing to add.
if os.environ.get("SAE_LM_EVAL_AUTOLOAD") != "0" and "_SaeLmEvalHook" not in [type(f).__name__ for f in sys.meta_path]:
    sys.meta_path.insert(
        0, _SaeLmEvalHook({"lm_eval.models": _register_model, "lm_eval.tasks.manager": _register_tasks})
    )
