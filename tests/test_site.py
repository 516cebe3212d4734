"""The pages of docs/: every command in them parses, every error is one that the code says."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from sae_lm_eval.cli.main import app

ROOT = Path(__file__).parents[1]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def commands_of(page: Path) -> list[list[str]]:
    """The words of each `sae-lm-eval` command in a page's shell blocks."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(re.sub(r"\s#.*", "", line)) for line in lines if line.startswith("sae-lm-eval ")]


def options_of(command: str) -> set[str]:
    """The flags that a command takes, in either spelling."""
    names = {name for parameter in COMMANDS[command].params for name in (*parameter.opts, *parameter.secondary_opts)}
    if command in ("run", "where"):  # lm_eval's flags go behind
        from sae_lm_eval.runs.sweep import lm_eval_settings

        names |= {f"--{name}" for name in lm_eval_settings()}
    return (
        names | {name.replace("_", "-") for name in names} | {name[:2] + name[2:].replace("-", "_") for name in names}
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_names_what_there_is(page):
    for _, *words in commands_of(page):
        if words[0] == "--help":
            continue
        assert words[0] in COMMANDS, words
        flags = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert flags <= options_of(words[0]) | {"--help"}, f"{words[0]}: {flags - options_of(words[0])}"


def test_there_are_commands():
    """In the pages that a newcomer reads."""
    for name in ("README.md", "docs/splicing.md", "docs/tutorials/first-table.md", "docs/tutorials/gemma-scope.md"):
        assert commands_of(ROOT / name), name


@pytest.mark.parametrize("sentence", re.findall(r"`([^`]*…[^`]*|T[^`]*)`", (ROOT / "docs" / "errors.md").read_text()))
def test_every_error_is_said_somewhere(sentence):
    """Its parts between names and numbers, in one sentence of the source, wherever its text is broken."""
    spoken = re.sub(r'"\s*\n\s*f?"', "", SOURCE)
    parts = [re.escape(part.strip()) for part in re.split(r"…", sentence) if part.strip(" %")]
    assert re.search("[^\n]{0,60}".join(parts), spoken), sentence


def test_the_command_line_is_described_as_it_is(tmp_path):
    written = tmp_path / "cli.md"
    command = [sys.executable, "-m", "typer", "sae_lm_eval.cli.main", "utils", "docs", "--name", "sae-lm-eval"]
    subprocess.run([*command, "--output", written], check=True, capture_output=True)
    assert written.read_text() == (ROOT / "docs" / "cli.md").read_text(), "run make docs"


def test_the_tables_of_arguments_are_those_of_the_code():
    script = ROOT / "scripts" / "argument_tables.py"
    spec = importlib.util.spec_from_file_location("argument_tables", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "splicing.md").read_text()
    assert module.rewritten(text) == text, "run make docs"


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "SaeHFLM" in (tmp_path / "api" / "index.html").read_text()


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_task_is_described():
    text = (ROOT / "docs" / "tasks.md").read_text()
    files = "\n".join(path.read_text() for path in sorted((ROOT / "tasks").rglob("*.yaml")))
    named = re.findall(r"^(?:task|group): (sae_\w+)", files, re.MULTILINE)
    assert len(named) > 20
    assert [name for name in named if f"`{name}`" not in text] == []
