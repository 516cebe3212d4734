"""`sae-lm-eval report`: a folder of result folders in, a report out; from files alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_lm_eval.cli.options import BaselineName, CategoriesFile, DocumentsBy, ResultsFolder, TaskOrder

if TYPE_CHECKING:
    from rich.console import Console

    from sae_lm_eval.report.formatting import Table


def report(
    out: ResultsFolder,
    baseline: BaselineName = None,
    output_path: Annotated[
        Path | None, typer.Option("--output_path", help="Where to write. Default: OUT/report.")
    ] = None,
    categories: CategoriesFile = None,
    docs_by: DocumentsBy = None,
    sort: TaskOrder = "task",
) -> None:
    """Write report.html, report.md, appendix.tex and .bib, drops.csv, fidelity.csv and figures; no model is loaded."""
    from rich.console import Console

    from sae_lm_eval.comparison.subsets import read_categories_file
    from sae_lm_eval.report import assemble, writer
    from sae_lm_eval.results import find

    chosen = None if categories is None else read_categories_file(categories)
    console = Console()
    made = assemble.build(assemble.pair_up(*find.find(out, baseline), categories=chosen, docs_by=docs_by), sort=sort)
    target = output_path or out / "report"
    writer.write(made, target)
    for sentence in made.headline:
        console.print(sentence, markup=False, highlight=False)
    short = [table for table in made.tables if table.extent == "short" and table.name != "variants"]
    wide = []
    for table in short:
        if not console.is_terminal or fits(table, console.width):
            print_table(table, console)
        else:
            wide.append(table.title)
    if wide:
        console.print(f"Too wide for this terminal, in the report: {', '.join(wide)}.", markup=False, highlight=False)
    for note in made.notes:
        console.print(f"Note: {note}", markup=False, highlight=False)
    console.print(f"Written: {target / 'report.html'}, report.md, appendix.tex, drops.csv, ...", markup=False)


NAME = 12  # letters of a name's line at least, where it is broken over lines


def widths_of(table: Table) -> list[int]:
    """Letters that each column of numbers needs, its heading broken at spaces; names can be broken anywhere."""
    return [
        max([*map(len, column.heading.split()), *(len(row[at].text) for row in table.rows)], default=1)
        for at, column in enumerate(table.columns)
    ]


def fits(table: Table, width: int) -> bool:
    """Whether the numbers of a table stand on their lines within `width` letters, and its texts have some room."""
    needed = widths_of(table)
    texts = [column.align == "left" for column in table.columns]
    return sum(1 + (min(NAME, of) if text else of) for of, text in zip(needed, texts, strict=True)) <= width + 1


def print_table(table: Table, console: Console) -> None:
    """A table of the report: on a terminal without its intervals, elsewhere all of it, a line a row."""
    import textwrap

    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    from sae_lm_eval.cli import tables

    if not console.is_terminal:
        rows = [[f"{cell.text} {cell.detail}".strip() for cell in row] for row in table.rows]
        tables.print_table(console, tables.TextTable([of.heading for of in table.columns], rows, table.title))
        console.print()
        return
    made = Grid(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column, width in zip(table.columns, widths_of(table), strict=True):
        heading = "\n".join(textwrap.wrap(column.heading, width)) if column.align == "right" else column.heading
        made.add_column(Text(heading), justify=column.align, overflow="fold", no_wrap=column.align == "right")
    for index, row in enumerate(table.rows):
        made.add_row(*(Text(cell.text) for cell in row), end_section=index + 1 in table.blocks)
    console.print(made)
