"""Rewrites the tables of modes and arguments in docs/splicing.md, and the README's of a demo whose folder is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import generated_parts

from sae_lm_eval.splicing.splice_arguments import MODES, SpliceArguments

ROOT = Path(__file__).parents[1]
README, SPLICING = ROOT / "README.md", ROOT / "docs" / "splicing.md"


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
    SPLICING.write_text(rewritten(SPLICING.read_text()))
    for folder in sys.argv[1:]:
        README.write_text(generated_parts.rewritten(README.read_text(), {"demo": of_demo(Path(folder))}))
