"""`sae-lm-eval report`: a folder of result folders in, a report out; from files alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sae_lm_eval.report.formatting import Table


def report(
    out: Annotated[Path, typer.Argument(help="A folder with the results of a baseline and of variants in it.")],
    baseline: Annotated[
        str | None, typer.Option(help="The baseline's folder, where it is not called baseline and not plain to see.")
    ] = None,
    output_path: Annotated[
        Path | None, typer.Option("--output_path", help="Where to write. Default: OUT/report.")
    ] = None,
    categories: Annotated[
        Path | None, typer.Option(help="YAML: category -> tasks or groups, or {field: name} of the documents.")
    ] = None,
) -> None:
    """Write report.html, report.md, appendix.tex and .bib, drops.csv, fidelity.csv and figures; no model is loaded."""
    from rich.console import Console

    from sae_lm_eval.comparison.subsets import read_categories_file
    from sae_lm_eval.report import assemble, writer
    from sae_lm_eval.results import find

    chosen = None if categories is None else read_categories_file(categories)
    console = Console()
    made = assemble.build(assemble.pair_up(*find.find(out, baseline), categories=chosen))
    target = output_path or out / "report"
    writer.write(made, target)
    for sentence in made.headline:
        console.print(sentence, markup=False, highlight=False)
    short = [table for table in made.tables if table.extent == "short" and table.name != "variants"]
    wide = [table.title for table in short if not _print(table, console)]
    if wide:
        console.print(f"Too wide for this terminal, in the report: {', '.join(wide)}.", markup=False, highlight=False)
    for note in made.notes:
        console.print(f"Note: {note}", markup=False, highlight=False)
    console.print(f"Written: {target / 'report.html'}, report.md, appendix.tex, drops.csv, ...", markup=False)


def _print(table: Table, console: Console) -> bool:
    """Print a table of the report, its drops without their intervals where they do not fit; whether it fitted so."""
    import re

    from sae_lm_eval.cli.tables import TextTable, has_room, print_table

    def text_table(left_out: str) -> TextTable:
        rows = [[re.sub(left_out, "", cell.text) for cell in row] for row in table.rows]
        words = [index for index, column in enumerate(table.columns) if column.align == "left"]
        return TextTable([column.heading for column in table.columns], rows, table.title, words)

    whole, narrow = text_table("$^"), text_table(r"(?<=\d) \[.*\]")
    if fits := has_room(console, narrow):
        print_table(console, whole, narrow)
        console.print()
    return fits
