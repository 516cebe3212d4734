"""`sae-lm-eval inspect`: what would be spliced where, or which registered dictionaries there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sae_lm_eval.cli.first_words import check_splices, say_loading
from sae_lm_eval.cli.tables import TextTable, print_facts, print_sentence, print_table
from sae_lm_eval.errors import UserError
from sae_lm_eval.report.formatting import fixed_decimals, general


def inspect(
    model_args: Annotated[
        str | None, typer.Option("--model_args", help="As for lm_eval: pretrained=gpt2,sae=...,hook_map=...")
    ] = None,
    text: Annotated[str | None, typer.Option(help="A .txt, .jsonl or .parquet file to measure the fit on.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of it to read.")] = 16384,
    pattern: Annotated[
        str | None, typer.Option("--list", help="List registered dictionaries, release#id, by glob.")
    ] = None,
) -> None:
    """Show what would be spliced where, and the dictionary's metadata; evaluate nothing."""
    from rich.console import Console

    from sae_lm_eval.dictionaries.saelens_package import check_pattern

    console = Console()
    if pattern is not None:
        if model_args is not None or text is not None:
            raise UserError("--list searches registered dictionaries: leave out --model_args and --text.")
        check_pattern(pattern)
        say_loading()
        _list(console, pattern)
        return
    if model_args is None:
        raise UserError("Give --model_args pretrained=...,sae=... to inspect a splice, or --list PATTERN to search.")
    from sae_lm_eval.runs.argument_text import named_values
    from sae_lm_eval.runtime.text_files import check_readable
    from sae_lm_eval.splicing.choices import whole
    from sae_lm_eval.splicing.edit_spec import refuse_edit
    from sae_lm_eval.splicing.splice_arguments import SpliceArguments

    whole(tokens, "--tokens", least=1)
    if text is not None:
        check_readable(text)
    arguments = named_values(model_args)
    check_splices(arguments)
    refuse_edit(SpliceArguments(**SpliceArguments.among(arguments)))
    say_loading()
    from sae_lm_eval.harness import inspection

    keeps = arguments.get("splice_tokens", "non_special") != "all"
    special = "bos, eos and pad keep the original activation" if keeps else "all are spliced"
    for splice in inspection.planned_variant(arguments).splices:
        print_facts(console, splice.dictionary.name, inspection.splice_facts(splice, special))
    if text is not None:
        _show_fits(console, *inspection.fits(arguments, text, tokens))


def _show_fits(console: Any, fits: list[list[Any]], factors: list[float | str | None]) -> None:
    for index, (candidates, factor) in enumerate(zip(fits, factors, strict=True)):
        if factor is not None:
            console.print(f"Dictionary {index + 1} needs norm_factor={general(factor)} by this text; so is the fit.")
        rows = [(fit.map, fixed_decimals(fit.explained_variance, 4), fixed_decimals(fit.l0)) for fit in candidates]
        rows[0] = (f"{rows[0][0]} (chosen)", *rows[0][1:])
        title = f"Fit of dictionary {index + 1} on {candidates[0].tokens:,} tokens"
        print_table(console, TextTable(("activation map", "explained variance", "L0"), rows, title))
        print_sentence(console, f"Dictionary {index + 1}, {candidates[0].released}", soft_wrap=True)


def _list(console: Any, pattern: str) -> None:
    from sae_lm_eval.catalog import saelens_registry

    rows = saelens_registry.search(pattern)
    names = ("spec", "model", "hook", "map", "width", "l0", "verdict", "why")
    lines = [["" if row[name] is None else str(row[name]) for name in names] for row in rows]
    print_table(console, TextTable(names, lines, words=range(len(names))))
    if console.is_terminal:
        console.print(f"{len(rows):,} dictionaries")
