"""`sae-lm-eval report`: a folder of result folders in, a report out; from files alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lm_eval.cli.options import BaselineName, CategoriesFile, DocumentsBy, ResultsFolder, TaskOrder
from sae_lm_eval.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sae_lm_eval.exchange.scores import ScoreSet
    from sae_lm_eval.report.assemble import Report
    from sae_lm_eval.report.formatting import ReportTable
    from sae_lm_eval.results.results import Results


def report(
    out: ResultsFolder,
    baseline: BaselineName = None,
    output_path: Annotated[
        Path | None, typer.Option("--output_path", help="Where to write. Default: OUT/report.")
    ] = None,
    categories: CategoriesFile = None,
    docs_by: DocumentsBy = None,
    sort: TaskOrder = "task",
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Scores of the dictionaries, to compare with the drops: a file or folder of SAEBench's or "
            "delphi's results, or a CSV or Parquet file with a column sae, or release and sae_id."
        ),
    ] = None,
) -> None:
    """Write report.html, report.md, appendix.tex and .bib, drops.csv, fidelity.csv and figures; no model is loaded."""
    from sae_lm_eval.runtime.placed_files import refuse_linked
    from sae_lm_eval.runtime.run_files import is_of_several_models

    target = output_path or out / "report"
    if output_path is None:
        refuse_linked(target, "Remove it, or give an --output_path.")
    pairing = {"baseline": baseline, "categories": categories, "docs_by": docs_by}
    if is_of_several_models(out):
        if scores is not None:
            raise UserError("--scores is for the run of one model: name its folder, as in OUT/MODEL.")
        from sae_lm_eval.report.transfer import write_transfer_report

        print_report(write_transfer_report(out, target, **pairing))
        say_written(target)
        return
    print_report(write_report(out, target, sort=sort, scores=scores, **pairing))
    say_written(target)


def say_written(target: Path) -> None:
    typer.echo(f"Written: {target / 'report.html'}, report.md, appendix.tex, drops.csv, ...")


def write_report(
    out: Path,
    target: Path,
    *,
    baseline: str | None = None,
    sort: Any = "task",
    scores: Path | None = None,
    **pairing: Any,
) -> Report:
    """The report on the results in `out`, written to `target`; `pairing` is as for `assemble.pair_up`."""
    from sae_lm_eval.results import find

    results = find.find_results(out, baseline)
    score_set = None if scores is None else joined_scores(scores, results[1])

    from sae_lm_eval.comparison.compare import with_notes
    from sae_lm_eval.comparison.multiplicity import stars_changed
    from sae_lm_eval.report import assemble, writer
    from sae_lm_eval.report.provenance import names_in_report
    from sae_lm_eval.runtime.run_folder import added_names

    comparison = assemble.compare_tasks(*results, **pairing)
    names = names_in_report(comparison.variants)
    drops, added = comparison.drops.replace({"variant": names}), [names.get(name, name) for name in added_names(out)]
    comparison = with_notes(comparison, stars_changed(drops, added, comparison.level))
    report = assemble.build(comparison, sort=sort)
    if score_set is not None:
        from sae_lm_eval.exchange.score_report import with_scores

        report = with_scores(report, comparison, score_set)
    writer.write(report, target)
    return report


def joined_scores(path: Path, variants: Sequence[Results]) -> ScoreSet:
    """The scores at `path`, before anything is compared. Raises `UserError` where none is of a variant's dictionary."""
    from sae_lm_eval.exchange.score_files import read_scores

    scores = read_scores(path)

    from sae_lm_eval.exchange.score_join import check_joins

    check_joins(scores, variants)
    return scores


def print_report(report: Report, most: int | None = None) -> None:
    """Print the headline, the short tables or the first `most` of them, and the notes."""
    from rich.console import Console

    short = [table for table in report.tables if table.extent == "short" and table.name != "variants"]
    print_findings(Console(), report.headline, short[:most], (), report.notes)


def print_findings(
    console: Console,
    headline: Iterable[str],
    tables: Iterable[ReportTable],
    captions: Iterable[str],
    notes: Iterable[str],
) -> None:
    """Sentences, tables and notes of a report, as much as a terminal has room for."""
    from sae_lm_eval.cli.tables import fitting_table, print_report_table, print_sentence

    for sentence in headline:
        print_sentence(console, sentence)
    wide = []
    for table in tables:
        narrow = fitting_table(console, table)
        if narrow is None:
            wide.append(table.title)
        else:
            print_report_table(console, narrow)
    if wide:
        print_sentence(console, f"Too wide for this terminal: {', '.join(wide)}.")
    for sentence in (*captions, *(f"Note: {note}" for note in notes)):
        print_sentence(console, sentence)
