"""`sae-lm-eval report`: a folder of result folders in, a report out; from files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_lm_eval.cli.options import BaselineName, CategoriesFile, DocumentsBy, ResultsFolder, TaskOrder


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

    from sae_lm_eval.cli.tables import fits_a_terminal, print_report_table, print_sentence
    from sae_lm_eval.comparison.subsets import read_categories_file
    from sae_lm_eval.report import assemble, writer
    from sae_lm_eval.results import find

    chosen = None if categories is None else read_categories_file(categories)
    console = Console()
    made = assemble.build(assemble.pair_up(*find.find(out, baseline), categories=chosen, docs_by=docs_by), sort=sort)
    target = output_path or out / "report"
    writer.write(made, target)
    for sentence in made.headline:
        print_sentence(console, sentence)
    short = [table for table in made.tables if table.extent == "short" and table.name != "variants"]
    wide = []
    for table in short:
        if fits_a_terminal(console, table):
            print_report_table(console, table)
        else:
            wide.append(table.title)
    if wide:
        print_sentence(console, f"Too wide for this terminal, in the report: {', '.join(wide)}.")
    for note in made.notes:
        print_sentence(console, f"Note: {note}")
    print_sentence(console, f"Written: {target / 'report.html'}, report.md, appendix.tex, drops.csv, ...")
