"""The commands of the tutorials that need no network, as they stand there, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_site import ROOT, commands_of

TUTORIALS = ROOT / "docs" / "tutorials"
# The environment that runs the tests, whether or not somebody activated it.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
pytestmark = pytest.mark.slow


def offline(page: Path) -> list[list[str]]:
    return [words for words in commands_of(page) if "gpt2" not in " ".join(words) and words[1] != "talk"]


def run(words: list[str], folder: Path, typed: str = "") -> str:
    done = subprocess.run(
        words,
        cwd=folder,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": PATH},
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_first_table(tmp_path):
    said = {words[1]: run(words, tmp_path) for words in offline(TUTORIALS / "first-table.md") if words[1] != "doctor"}
    assert set(said) == {"inspect", "run", "table", "report", "effective-compute", "where"}
    assert re.search(r"baseline\s.*\d", said["run"])
    assert (tmp_path / "out" / "first" / "report" / "report.html").is_file()
    assert (tmp_path / "out" / "first" / "report" / "appendix.tex").is_file()


def test_talking_to_a_spliced_model(tmp_path):
    (words,) = [words for words in commands_of(TUTORIALS / "first-table.md") if words[1] == "talk"]
    assert "baseline" in run(words, tmp_path, typed="Tom saw\n")


def test_a_method_that_is_no_sae(tmp_path):
    page = TUTORIALS / "your-own-sae.md"
    (code,) = re.findall(r"```python\n# directions.py\n(.*?)```", page.read_text(), re.S)
    (tmp_path / "directions.py").write_text(code)
    (words,) = [words for words in offline(page) if "directions" in " ".join(words)]
    assert "rank" in run(words, tmp_path)


def test_the_example_of_the_readme(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    run(["python", "-c", f"{code}\nassert len(comparison.drops)"], tmp_path)
