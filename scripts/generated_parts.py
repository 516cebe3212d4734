"""Pages of which parts are generated: each stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

from collections.abc import Mapping


def split(text: str, name: str) -> tuple[str, str, str]:
    """What stands before a part's content, the content, and what stands behind it, marks included.

    Raises `ValueError` for a part that `text` does not have.
    """
    begin, end = f"<!-- generated: {name} -->\n", f"\n<!-- end of {name} -->"
    before, opened, rest = text.partition(begin)
    content, closed, behind = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"no part between '{begin.strip()}' and '{end.strip()}'")
    return before + begin, content, end + behind


def rewritten(text: str, parts: Mapping[str, str]) -> str:
    """`text` with the content of the parts made anew. Raises `ValueError` as `split` does."""
    for name, content in parts.items():
        before, _, behind = split(text, name)
        text = before + content + behind
    return text
