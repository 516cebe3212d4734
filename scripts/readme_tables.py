"""Rewrites the tables of modes and arguments in README.md, and that of the demo where its folder is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import generated_parts

from sae_lm_eval.splicing.splice_arguments import MODES, SpliceArguments

README = Path(__file__).parents[1] / "README.md"


def table(head: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {head} |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in rows.items())])


def rewritten(text: str) -> str:
    """`text` with its tables made anew. Raises `ValueError` for a table that `text` does not have."""
    tables = {
        "modes": table("`splice=` | what stands at each position", MODES),
        "arguments": table("argument | meaning", SpliceArguments.meanings()),
    }
    return generated_parts.rewritten(text, tables)


def of_demo(folder: Path) -> str:
    """What the demo in `folder` printed first, as the command `table` writes it for a page."""
    command = [sys.executable, "-m", "sae_lm_eval", "table", str(folder), "--by", "group", "--format", "markdown"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    text = rewritten(README.read_text())
    for folder in sys.argv[1:]:
        text = generated_parts.rewritten(text, {"demo": of_demo(Path(folder))})
    README.write_text(text)
