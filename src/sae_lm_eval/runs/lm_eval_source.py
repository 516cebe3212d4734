"""Names that lm_eval's source holds, read without importing it: that takes seconds."""

from __future__ import annotations

import ast
import functools
from importlib.util import find_spec
from pathlib import Path


def lm_eval_folder() -> Path:
    """Where the package lies."""
    package = find_spec("lm_eval")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent


@functools.cache
def hflm_arguments() -> tuple[str, ...]:
    """The arguments of lm_eval's `HFLM`."""
    hflm = _class_in("models/huggingface.py", "HFLM")
    (init,) = (node for node in hflm.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return tuple(argument.arg for argument in (*init.args.args[1:], *init.args.kwonlyargs))


@functools.cache
def evaluator_settings() -> tuple[str, ...]:
    """The fields of lm_eval's `EvaluatorConfig`."""
    config = _class_in("config/evaluate_config.py", "EvaluatorConfig")
    fields = (node.target for node in config.body if isinstance(node, ast.AnnAssign))
    return tuple(target.id for target in fields if isinstance(target, ast.Name))


def _class_in(file: str, name: str) -> ast.ClassDef:
    source = (lm_eval_folder() / file).read_text(encoding="utf-8")
    (definition,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    return definition
