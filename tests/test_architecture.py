"""The shape of the package: no circles among its modules, and lengths that a reader can take in."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest
from conftest import WHOLE_COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sae_lm_eval"
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, PARAMETERS = 350, 60, 12
# What is longer, and why. An entry that is no longer needed fails the test.
EXCEPTIONS = {
    "harness/model.py __init__ parameters": "lm_eval makes keywords of --model_args: they are the user's interface",
    "cli/effective_compute.py effective_compute_command parameters": "a flag each",
}

# Fragments of sentences, which say nothing of the thing that bears them.
FRAGMENTS = frozenset({"of", "found", "made", "told", "asked", "known", "one"})

# Names that two modules give to two things. The list only shrinks: an entry that is no longer needed fails the test.
HOMONYMS: set[str] = set()


@functools.cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Path and syntax tree of each module, by its dotted name."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return trees


def imports(name: str) -> set[str]:
    """The modules of the package that a module imports anywhere: at its top, in a function, or for its types."""
    path, tree = modules()[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                names.add(inner if inner in modules() else base)
    return names & modules().keys() - {name}


def circles() -> set[frozenset[str]]:
    """Each largest set of modules that can all be reached from one another."""
    reached: dict[str, set[str]] = {}
    for name in modules():
        seen, left = set[str](), [name]
        while left:
            new = imports(left.pop()) - seen
            seen |= new
            left += new
        reached[name] = seen
    return {
        frozenset(other for other in seen if name in reached[other]) for name, seen in reached.items() if name in seen
    }


def too_long() -> Iterator[tuple[str, str]]:
    """What breaks a limit, by the name it has among the exceptions, and by how much."""
    for path, tree in modules().values():
        file = path.relative_to(PACKAGE).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES_OF_A_FILE:
            yield file, f"{lines} lines"
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LINES_OF_A_FUNCTION:
                yield f"{file} {node.name}", f"{lines} lines"
            parameters = len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
            if parameters > PARAMETERS:
                yield f"{file} {node.name} parameters", f"{parameters} parameters"


def homonyms() -> set[str]:
    """Public classes and functions at the top of more than one module."""
    homes: dict[str, set[str]] = {}
    for module, (_, tree) in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                homes.setdefault(node.name, set()).add(module)
    return {name for name, where in homes.items() if len(where) > 1}


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What a module defines or assigns to, and the line: variables, parameters, attributes, functions and classes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, getattr(node, "lineno", 0)


def test_names_are_no_fragments_of_sentences():
    fragments = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for folder in ("src", "tests", "benchmarks", "scripts", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, line in bound_names(ast.parse(path.read_text(encoding="utf-8")))
        if name in FRAGMENTS
    ]
    assert not fragments


@pytest.mark.parametrize("folder", ["benchmarks", "scripts", "examples"])
def test_what_is_imported_from_the_package_is_there(folder):
    missing = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module not in modules():
                continue
            home, tree = modules()[node.module]
            names = {name for name, _ in bound_names(tree)} | {
                alias.asname or alias.name
                for statement in ast.walk(tree)
                if isinstance(statement, ast.ImportFrom)
                for alias in statement.names
            }
            lazy = home == PACKAGE / "__init__.py"  # gives its names when they are asked for
            missing += [
                f"{path.relative_to(ROOT)}: {alias.name} of {node.module}"
                for alias in node.names
                if not lazy and alias.name not in names and f"{node.module}.{alias.name}" not in modules()
            ]
    assert not missing


def test_files_of_whole_commands_are_there():
    assert not WHOLE_COMMANDS - {path.stem for path in (ROOT / "tests").glob("test_*.py")}


def test_a_public_name_means_one_thing():
    assert homonyms() == HOMONYMS


def test_no_module_imports_itself_by_way_of_others():
    assert not circles()


def test_files_and_functions_are_short():
    lengths = dict(too_long())
    assert not {name: length for name, length in lengths.items() if name not in EXCEPTIONS}
    assert not EXCEPTIONS.keys() - lengths.keys(), "these exceptions are no longer needed: take them out of the list"


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_module_imports_the_package_itself(name):
    # Its __init__ is for users, and fetches what they ask for from everywhere.
    assert "sae_lm_eval" not in imports(name) or name == "sae_lm_eval"
