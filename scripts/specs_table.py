"""Rewrites the generated parts of docs/specs.md; `--check` changes nothing and fails where they are out of date."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import generated_parts

from sae_lm_eval.catalog.converters import CONVERTERS
from sae_lm_eval.catalog.saelens_registry import REFUSED, SUPPORTED, Entry, entries
from sae_lm_eval.catalog.site_probe import small_architecture
from sae_lm_eval.dictionaries.release_facts import FACTS, fact_of
from sae_lm_eval.splicing.hook_names import BLOCK_HOOKS, Architecture
from sae_lm_eval.splicing.site import resolve_site

SPECS = Path(__file__).parents[1] / "docs" / "specs.md"
COLUMNS = {
    "GPT-2": "gpt2",
    "GPT-Neo": "gpt_neo",
    "GPT-NeoX": "gpt_neox",
    "Llama": "llama",
    "Mistral": "mistral",
    "Qwen2": "qwen2",
    "Qwen3": "qwen3",
    "Gemma-2": "gemma2",
    "Gemma-3": "gemma3_text",
    "Gemma-3 with images": "gemma3",
}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in cells)


def sites() -> str:
    """Where each hook of a block is read and written; architectures with the same modules share a column."""
    groups: dict[tuple[str, ...], list[str]] = {}
    paths: dict[str, str] = {}
    for name, model_type in COLUMNS.items():
        architecture = small_architecture(model_type)
        paths[name] = f"`{architecture.blocks_path}.N`"
        cells = tuple(_cell(architecture, f"blocks.0.{hook}") for hook in BLOCK_HOOKS)
        embedding = f"`{architecture.embedding.path.rpartition('.')[2]}.{architecture.embedding.side}`"
        groups.setdefault((*cells, embedding), []).append(name)
    head = ["hook", *(", ".join(names) for names in groups.values())]
    blocks = [", ".join(dict.fromkeys(paths[name] for name in names)) for names in groups.values()]
    hooks = (*(f"blocks.N.{hook}" for hook in BLOCK_HOOKS), "hook_embed")
    return table(
        head,
        [
            ["block N", *blocks],
            *([f"`{hook}`", *(cells[i] for cells in groups)] for i, hook in enumerate(hooks)),
        ],
    )


def _cell(architecture: Architecture, hook: str) -> str:
    if hook.removeprefix("blocks.0.") not in architecture.hooks(0):
        return "none"
    site = resolve_site(architecture, hook)
    read, written = (str(port).removeprefix(f"{architecture.blocks_path}.0.") for port in (site.read, site.write))
    if site.write is None:
        return f"`{read}`, read only"
    return f"`{read}`" if read == written else f"`{read}`, written at `{written}`"


def counted(key: Callable[[Entry], object], head: str) -> str:
    """How many dictionaries there are of each `key`, by verdict, the most frequent first."""
    verdicts = sorted({entry.verdict for entry in entries()} - {SUPPORTED, REFUSED})
    columns = [SUPPORTED, *verdicts, REFUSED]
    counts = Counter((key(entry), entry.verdict) for entry in entries())
    totals = Counter(key(entry) for entry in entries())
    rows = [
        [name, f"{n:,}", *(f"{counts[name, verdict]:,}" for verdict in columns)] for name, n in totals.most_common()
    ]
    whole = Counter(entry.verdict for entry in entries())
    rows.append(["all", f"{len(entries()):,}", *(f"{whole[verdict]:,}" for verdict in columns)])
    rows.append(["share", "", *(f"{whole[verdict] / len(entries()):.1%}" for verdict in columns)])
    return table([head, "dictionaries", *columns], rows)


def converters() -> str:
    """By converter, what is read off names here while SAELens will read a file of the hub."""
    counts = Counter(entry.converter for entry in entries())
    return table(
        ["converter of SAELens", "dictionaries", "read off names", "only its file decides"],
        [
            [f"`{name}`", f"{n:,}", CONVERTERS[name].inferred or "-", CONVERTERS[name].decided_by or "-"]
            for name, n in counts.most_common()
        ],
    )


def facts() -> str:
    """What is known of releases beyond their files: how many dictionaries it is about, and who says so."""
    rows = []
    for fact in FACTS:
        count = sum(fact_of(entry.release) is fact for entry in entries())
        options = ", ".join(f"`{name}={value}`" for name, value in (fact.processing or {}).items())
        bos = "not stated" if fact.prepend_bos is None else "yes" if fact.prepend_bos else "no"
        rows.append(
            [
                f"`{fact.releases}`",
                f"{count:,}",
                options or "none",
                bos,
                f"<https://{fact.source.replace(', ', '>, ', 1)}",
            ]
        )
    return table(
        ["releases", "dictionaries", "processing by TransformerLens", "behind BOS", "by its authors' code"], rows
    )


def hook_kind(entry: Entry) -> str:
    return f"`{re.sub(r'blocks.[0-9]+.', '', entry.hook)}`" if entry.hook_in else entry.hook


PARTS: dict[str, Callable[[], str]] = {
    "sites": sites,
    "by hook": lambda: counted(hook_kind, "hook"),
    "by family": lambda: counted(lambda entry: entry.base and entry.base.family, "family"),
    "by architecture": lambda: counted(lambda entry: f"`{entry.model_class}`", "class"),
    "by converter": converters,
    "facts": facts,
}


def rewritten(text: str) -> str:
    """`text` with every generated part made anew. Raises `ValueError` for a part that `text` does not have."""
    return generated_parts.rewritten(text, {name: make() for name, make in PARTS.items()})


def main(arguments: Sequence[str]) -> int:
    old = SPECS.read_text()
    new = rewritten(old)
    if "--check" in arguments:
        if new != old:
            print(f"{SPECS} is out of date: run python {Path(__file__).name}", file=sys.stderr)
        return int(new != old)
    SPECS.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
