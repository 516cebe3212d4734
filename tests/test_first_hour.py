"""scripts/first_hour.py: what it takes for a block, what it runs, and what it calls a failure.

`make first-hour` runs the README and the tutorials themselves.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = """\
Text.

```bash
python -c "print('one')" > out.txt   # a comment
python -c \\
    "assert open('out.txt').read() == 'one\\\\n'"
```

A file, `sweep.yaml`:

```yaml
limit: 3
```

```python
# mine.py
X = 1
```

```python
import mine

assert mine.X == 1
```

<!-- needs: objects of yours -->
```python
undefined_name
```

<!-- elsewhere: somebody -->
```bash
exit 1
```

```
no language, so it is not run
```
"""


SAE = "gpt2-small-res-jb#blocks.8.hook_resid_pre"


def planned(arguments: str) -> str:
    """A block with a run that needs a network."""
    return f"<!-- needs: network -->\n```bash\nsae-lm-eval run {arguments}\n```\n"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("first_hour", ROOT / "scripts" / "first_hour.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def done(script, tmp_path, monkeypatch, capsys):
    """Runs a page of this text: the exit code, and what was printed."""

    def run(text: str) -> tuple[int, str]:
        monkeypatch.setattr(script, "ROOT", tmp_path)
        (tmp_path / "examples").mkdir()
        (tmp_path / "page.md").write_text(text)
        return script.main([str(tmp_path / "page.md")]), capsys.readouterr().out

    return run


def test_blocks_run_in_their_order_and_in_one_folder(done):
    code, said = done(PAGE)
    assert code == 0, said
    assert [line.split(" ")[2] for line in said.splitlines()[1:]] == ["ok", "ok", "ok", "run"]


def test_what_a_block_is(script, tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    blocks = list(script.blocks_of(tmp_path / "page.md"))
    assert [block.language for block in blocks] == ["bash", "yaml", "python", "python", "python", "bash"]
    assert [block.file for block in blocks] == [None, "sweep.yaml", "mine.py", None, None, None]
    assert [block.mark for block in blocks] == [None, None, None, None, "needs", "elsewhere"]


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ('```bash\npython -c "raise SystemExit(3)"\n```\n', "FAILED"),
        ("```python\nassert False\n```\n", "AssertionError"),
        ("<!-- needs: network -->\n```bash\nsae-lm-eval run --no_such_flag\n```\n", "no_such_flag"),
        ("<!-- needs: network -->\n```bash\npython -c 'raise ValueError(\"There is no network\")'\n```\n", "Traceback"),
        (planned(f"--model_args pretrained=gpt2 --sae {SAE} --tasks blimpp"), "There is no task 'blimpp'"),
        (
            planned("--model_args pretrained=gpt2 --sae gpt2-small-res-jbb#blocks.8.hook_resid_pre --tasks blimp"),
            "There is no SAELens release 'gpt2-small-res-jbb'",
        ),
        (planned(f"--model_args pretrained=gtp22 --sae {SAE} --tasks blimp"), "model 'gtp22'"),
        (planned("no_such_sweep.yaml"), "There is no sweep file 'no_such_sweep.yaml'"),
    ],
    ids=["exit code", "python", "a flag that is none", "a traceback", "a task", "a release", "a model", "no file"],
)
def test_a_block_that_fails_is_told(done, block, why):
    code, said = done(block)
    assert code == 1
    assert why in said


def test_what_needs_a_network_is_planned_without_one(done):
    code, said = done(planned(f"--model_args pretrained=gpt2 --tasks blimp --sae {SAE}"))
    assert code == 0, said
    assert "planned, needs network" in said


def test_every_page_has_blocks_that_run(script):
    for page in script.PAGES:
        blocks = list(script.blocks_of(page))
        assert blocks, page
    assert any(block.mark is None for page in script.PAGES for block in script.blocks_of(page))
