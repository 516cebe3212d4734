"""Rewrites the tables of modes and arguments in README.md.

A table stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sae_lm_eval.splicing.splice_arguments import MODES, SpliceArguments

README = Path(__file__).parents[1] / "README.md"


def table(head: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {head} |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in rows.items())])


def rewritten(text: str) -> str:
    tables = {
        "modes": table("`splice=` | what stands at each position", MODES),
        "arguments": table("argument | meaning", SpliceArguments.meanings()),
    }
    for name, content in tables.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, behind = rest.partition(end)
        text = f"{before}{begin}\n{content}\n{end}{behind}"
    return text


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
