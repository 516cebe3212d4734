"""`sae-lm-eval compare`: result folders in, tables of drops out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_lm_eval.cli.options import CategoriesFile, DocumentsBy, TaskOrder
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import for_spreadsheets

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from sae_lm_eval.report.assemble import Shaped
    from sae_lm_eval.report.formatting import ReportTable
    from sae_lm_eval.results.results import Results

CAPTION = (
    "Accuracies in percent; drops in percentage points for accuracies, as the rise in nats (and as a ratio) for "
    "perplexities, else in the metric's unit, positive where the variant is worse. p: after Holm's adjustment; * below "
    "{alpha:.2g}. lost, gained: answers that went from right to wrong, from wrong to right. margin: mean change of the "
    "log-probability of the right answer less that of the best wrong one, in nats. above chance lost: share, in "
    "percent. detectable: the drop that would be seen with 80% power."
)


def compare_command(
    baseline: Annotated[Path, typer.Argument(help="Folder of results, or log of Inspect, of the untouched model.")],
    variants: Annotated[list[Path], typer.Argument(help="Folders of results, or logs of Inspect, to compare with it.")],
    output_path: Annotated[
        Path | None, typer.Option("--output_path", help="Also write a report into this folder.")
    ] = None,
    categories: CategoriesFile = None,
    docs_by: DocumentsBy = None,
    sort: TaskOrder = "task",
    csv: Annotated[Path | None, typer.Option(help="Write every number to this file.")] = None,
    metrics: Annotated[str, typer.Option(help="primary: one metric a task; all: every one.")] = "primary",
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    draws: Annotated[int, typer.Option(help="Draws of bootstrap and permutations.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
) -> None:
    """Compare results folders, document by document. lm_eval writes them with --output_path and --log_samples."""
    _check_writable(csv, output_path)
    from rich.console import Console

    from sae_lm_eval.cli.report import print_findings
    from sae_lm_eval.cli.tables import print_sentence
    from sae_lm_eval.report import assemble, writer
    from sae_lm_eval.report.drop_tables import DAGGER
    from sae_lm_eval.report.formatting import span
    from sae_lm_eval.report.headline import headline

    untouched, *others = _named_once([baseline, *variants])
    comparison = assemble.compare_tasks(
        untouched,
        others,
        categories=categories,
        docs_by=docs_by,
        metrics="all" if output_path else metrics,
        level=level,
        draws=draws,
        seed=seed,
    )
    shaped, console = assemble.shape(comparison, sort, metrics), Console()
    alpha, methods = 1 - level, [f"Intervals: {_each(comparison.drops, 'interval')}."]
    shots = (row.shots for row in shaped.rows if row.section == "task")
    methods += [examples] if (examples := span(shots, "In-context examples: {}.", unknown="")) else []
    methods += [f"Tests: {_each(comparison.drops, 'test')}. {comparison.family}"]
    for caution, rows in comparison.drops.groupby("caution", sort=False):
        methods += [f"{DAGGER} {caution}: {', '.join(dict.fromkeys(rows['alias']))}."]
    print_findings(
        console,
        headline(shaped.comparison, shaped.summary()),
        _tables(shaped),
        [CAPTION.format(alpha=alpha), " ".join(methods)] if len(comparison.drops) else [],
        comparison.notes,
    )
    if csv is not None:
        _write_csv(comparison.drops, csv)
        print_sentence(console, f"Written: {csv}", soft_wrap=True)
    if output_path is not None:
        writer.write(assemble.build(comparison, sort=sort), output_path)
        print_sentence(console, f"Written: {output_path / 'report.html'}, ...", soft_wrap=True)


def _named_once(paths: Sequence[Path]) -> list[Results]:
    """The results of the baseline and of the variants, each of another run."""
    from sae_lm_eval.files.reading import shown
    from sae_lm_eval.results.find import named_results, swapped

    runs = [named_results(path) for path in paths]
    files = [run.file.resolve() for run in runs]
    if twice := [run.file for run, file in zip(runs, files, strict=True) if files.count(file) > 1]:
        raise UserError(f"'{shown(twice[0], 200)}' would be compared with itself: name each run once.")
    if why := swapped(runs[0], runs[1:]):
        raise UserError(f"{why} Name the untouched model's folder first.")
    return runs


def _check_writable(csv: Path | None, output_path: Path | None) -> None:
    from sae_lm_eval.runtime.run_folder import check_folder
    from sae_lm_eval.runtime.text_files import check_writable

    if csv is not None:
        check_writable(csv)
    if output_path is not None:
        check_folder(output_path)


def _tables(shaped: Shaped) -> list[ReportTable]:
    """What the report says of the drops; a table that holds nothing but names is left out."""
    from sae_lm_eval.report.assemble import summary_tables
    from sae_lm_eval.report.task_tables import NAMES, detail_tables

    tables = summary_tables(shaped)
    for section in NAMES:
        if section != "overall":
            tables += detail_tables(shaped.rows, shaped.significance, section)
    return [table for table in tables if len(table.columns) > 1]


def _each(drops: pd.DataFrame, name: str) -> str:
    return "; ".join(sorted(set(drops[name])))


def _write_csv(drops: pd.DataFrame, file: Path) -> None:
    from sae_lm_eval.schema import VERSION

    try:
        for_spreadsheets(drops.assign(schema=VERSION)).to_csv(file, index=False)
    except OSError as error:
        raise UserError(f"'{file}' cannot be written: {error.strerror or error}.") from error
