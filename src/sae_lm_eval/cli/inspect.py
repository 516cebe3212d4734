"""`sae-lm-eval inspect`: what would be spliced where, or which registered dictionaries there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sae_lm_eval.errors import UserError


def inspect(
    model_args: Annotated[
        str | None, typer.Option("--model_args", help="As for lm_eval: pretrained=gpt2,sae=...,hook_map=...")
    ] = None,
    text: Annotated[str | None, typer.Option(help="A .txt, .jsonl or .parquet file to measure the fit on.")] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens of it.")] = 16384,
    pattern: Annotated[
        str | None, typer.Option("--list", help="List registered dictionaries, release#id, by glob.")
    ] = None,
) -> None:
    """Say what would be spliced where, and what the dictionary's metadata says; evaluate nothing."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if pattern is not None:
        _list(console, pattern)
        return
    if model_args is None:
        raise UserError("Give --model_args pretrained=...,sae=... to inspect a splice, or --list PATTERN to search.")
    from sae_lm_eval.harness import inspection
    from sae_lm_eval.runtime.text_files import check_file
    from sae_lm_eval.splicing.arguments import whole

    whole(tokens, "--tokens", least=1)
    if text is not None:
        check_file(text)
    arguments = _model_args(model_args)
    keeps = arguments.get("splice_tokens", "non_special") != "all"
    special = "bos, eos and pad keep the original activation" if keeps else "all are spliced"
    for splice in inspection.plan(arguments).splices:
        table = Table(title=splice.dictionary.name, show_header=False, title_justify="left")
        for label, value in inspection.facts(splice, special).items():
            table.add_row(label, value)
        console.print(table)
    if text is not None:
        _show_fits(console, *inspection.fits(arguments, text, tokens))


def _model_args(text: str) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    return simple_parse_args_string(text)


def _show_fits(console: Any, fits: list[list[Any]], factors: list[float | str | None]) -> None:
    from rich.table import Table

    for index, (candidates, factor) in enumerate(zip(fits, factors, strict=True)):
        if factor is not None:
            text = factor if isinstance(factor, str) else f"{factor:.6g}"
            console.print(f"Dictionary {index + 1} needs norm_factor={text} by this text; the fit is with it.")
        table = Table(title=f"Fit of dictionary {index + 1} on {candidates[0].tokens:,} tokens", title_justify="left")
        table.add_column("activation map")
        table.add_column("explained variance", justify="right")
        table.add_column("L0", justify="right")
        for position, fit in enumerate(candidates):
            chosen = " (chosen)" if position == 0 else ""
            table.add_row(fit.map + chosen, f"{fit.explained_variance:.4f}", f"{fit.l0:.1f}")
        console.print(table)
        console.print(f"Dictionary {index + 1}, {candidates[0].released}", soft_wrap=True, markup=False)


def _list(console: Any, pattern: str) -> None:
    """A table on a terminal; elsewhere a line for each dictionary, its cells parted by tabs."""
    from rich.markup import escape
    from rich.table import Table

    from sae_lm_eval.catalog import saelens_registry

    found = saelens_registry.search(pattern)
    names = ("spec", "model", "hook", "map", "width", "l0", "verdict", "why")
    lines = [["" if row[name] is None else str(row[name]) for name in names] for row in found]
    if not console.is_terminal:
        print("\n".join("\t".join(line) for line in [names, *lines]))
        return
    table = Table(title=f"{len(found):,} dictionaries")
    for name in names:
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)
