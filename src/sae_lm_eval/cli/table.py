"""`sae-lm-eval table`: the one table of a folder of results, for a terminal, a paper, a repository or a program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lm_eval.cli.options import BaselineName, CategoriesFile, DocumentsBy, ResultsFolder, TaskOrder

if TYPE_CHECKING:
    from sae_lm_eval.report.formatting import ReportTable

FORMATS = ("text", "markdown", "latex", "csv")


def table_command(
    out: ResultsFolder,
    by: Annotated[
        str | None,
        typer.Option(help="Columns: group, category, task or overall. Default: what there is, the first of these."),
    ] = None,
    format: Annotated[str, typer.Option(help="text, markdown, latex or csv (unrounded).")] = "text",
    sort: TaskOrder = "task",
    baseline: BaselineName = None,
    categories: CategoriesFile = None,
    docs_by: DocumentsBy = None,
) -> None:
    """Print what each variant loses: variants in rows, categories in columns; no model is loaded."""
    from sae_lm_eval.errors import UserError, one_of
    from sae_lm_eval.files.escaping import for_spreadsheets
    from sae_lm_eval.report import assemble, summary_table
    from sae_lm_eval.results import find
    from sae_lm_eval.runtime.run_files import is_of_several_models

    one_of(format, FORMATS, "format")
    if is_of_several_models(out):
        if sort != "task":
            raise UserError(f"--sort orders the tasks of one model, and '{out}' has several: leave it out.")
        _of_several_models(out, by, format, baseline=baseline, categories=categories, docs_by=docs_by)
        return
    comparison = assemble.compare_tasks(*find.find_results(out, baseline), categories=categories, docs_by=docs_by)
    shaped = assemble.shape(comparison, sort)
    summary = shaped.summary(by)
    if format == "csv":
        typer.echo(for_spreadsheets(summary_table.summary_frame(summary)).to_csv(index=False), nl=False)
        return
    _show(summary_table.summary_table(summary, shaped.significance), format)


def _of_several_models(out: Path, by: str | None, format: str, **pairing: Any) -> None:
    """Variants in rows, models in columns; with `by` a table for each group, category or task."""
    from sae_lm_eval.errors import one_of
    from sae_lm_eval.files.escaping import for_spreadsheets
    from sae_lm_eval.report.summary_table import BY
    from sae_lm_eval.report.transfer import read_transfer

    if by is not None:
        one_of(by, BY, "by")
    transfer = read_transfer(out, **pairing)
    if format == "csv":
        typer.echo(for_spreadsheets(transfer.table(by)).to_csv(index=False), nl=False)
        return
    for number, matrix in enumerate(transfer.matrices(by)):
        if number:
            typer.echo()
        _show(matrix, format)


def _show(table: ReportTable, format: str) -> None:
    from sae_lm_eval.report import latex, render

    if format == "latex":
        typer.echo(latex.table_latex(table))
    elif format == "markdown":
        typer.echo(f"{render.table_markdown(table)}\n\n{render.render_markdown(table.caption)}")
    else:
        _print(table)


def _print(table: ReportTable) -> None:
    """On a terminal, as many columns at a time as it has room for."""
    from dataclasses import replace

    from rich.console import Console

    from sae_lm_eval.cli.tables import fits_a_terminal, print_report_table, print_sentence, with_intervals

    def part(start: int, end: int) -> ReportTable:
        rows = tuple((row[0], *row[start:end]) for row in table.rows)
        return replace(table, columns=(table.columns[0], *table.columns[start:end]), rows=rows)

    console, start, whole = Console(), 1, with_intervals(table)
    shows_all = fits_a_terminal(console, whole)  # as in a pipe
    if shows_all:
        print_report_table(console, whole if console.is_terminal else table)
        start = len(table.columns)
    while start < len(table.columns):
        ends = range(len(table.columns), start + 1, -1)
        end = next((end for end in ends if fits_a_terminal(console, part(start, end))), start + 1)
        print_report_table(console, part(start, end))
        start = end
    print_sentence(console, table.caption)
    if not shows_all and any(cell.detail for row in table.rows for cell in row):
        print_sentence(console, "The intervals have no room here: --format markdown, latex and csv show them.")
