"""Rewrites the tables of modes and arguments in README.md."""

from __future__ import annotations

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


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
