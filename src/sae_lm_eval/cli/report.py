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

    from rich import box
    from rich.measure import Measurement
    from rich.table import Table as Grid
    from rich.text import Text

    def grid(pattern: str) -> Grid:
        made = Grid(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in table.columns:
            made.add_column(Text(column.heading), justify=column.align, overflow="fold")
        for row in table.rows:
            made.add_row(*(Text(re.sub(pattern, "", cell.text)) for cell in row))
        return made

    def width(made: Grid) -> int:
        return Measurement.get(console, console.options.update(max_width=1000), made).maximum

    made = grid("$^")
    if width(made) > console.width:
        made = grid(r"(?<=\d) \[.*\]")
    fits = width(made) <= SQUEEZED * console.width
    if fits:
        console.print(made)
    return fits


SQUEEZED = 1.2  # names may be broken over lines, numbers hardly
