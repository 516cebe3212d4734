# Runs at interpreter start, from a .pth file that holds this text, so that `lm_eval` knows this package
# without a flag. It imports nothing but the standard library, and nothing at all until lm_eval is imported.
# SAE_LM_EVAL_AUTOLOAD=0 switches it off.
import os
import sys


class _AfterImport:
    """A meta-path finder that finds nothing; it calls back once certain modules have been executed."""

    def __init__(self, callbacks):
        self.callbacks = callbacks

    def find_spec(self, name, path=None, target=None):
        callback = self.callbacks.pop(name, None)
        if callback is None:
            return None
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                try:
                    callback(module)
                except Exception as error:
                    import logging

                    logging.getLogger("sae_lm_eval").warning(
                        "sae_lm_eval could not register itself with this lm_eval (%r); "
                        "lm_eval is not affected otherwise.",
                        error,
                    )

            spec.loader.exec_module = exec_module
        return spec


def _register_model(models):
    from lm_eval.api import registry

    # Releases that load plugins read the entry point of this package by themselves.
    if not hasattr(registry, "load_plugins") and "sae_hf" not in registry.model_registry:
        registry.model_registry.register("sae_hf", target="sae_lm_eval.adapter:SaeHFLM")


def _register_tasks(manager):
    import functools
    import inspect
    from importlib.util import find_spec

    spec = find_spec("sae_lm_eval")
    if spec is None or spec.origin is None:
        raise ImportError("sae_lm_eval is not installed")
    package = os.path.dirname(spec.origin)
    # In a wheel the tasks lie in the package, in a checkout at its top.
    folders = [os.path.join(package, "tasks"), os.path.join(package, "..", "..", "tasks")]
    ours = os.path.normpath(next(folder for folder in folders if os.path.isdir(folder)))
    init = manager.TaskManager.__init__
    signature = inspect.signature(init)

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


if os.environ.get("SAE_LM_EVAL_AUTOLOAD", "1") != "0":
    sys.meta_path.insert(0, _AfterImport({"lm_eval.models": _register_model, "lm_eval.tasks.manager": _register_tasks}))
