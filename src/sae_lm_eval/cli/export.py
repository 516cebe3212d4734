"""`sae-lm-eval export`: the numbers of a folder of results in other projects' formats; no model is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sae_lm_eval.cli.options import BaselineName, ResultsFolder

FOLDER = "hub"  # within the folder of results


def export_command(
    out: ResultsFolder,
    saebench: Annotated[
        Path | None, typer.Option(help="Write results of SAEBench's eval core into this folder.")
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(help="Make a data set for the Hugging Face Hub, org/name: a row for each document and variant."),
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts", help="With --hub: the benchmarks' prompts and answers as well.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry_run",
            help="With --hub: write the folder, but upload nothing.",
        ),
    ] = False,
    output_path: Annotated[
        Path | None, typer.Option("--output_path", help="With --hub: the folder to upload. Default: OUT/hub.")
    ] = None,
    baseline: BaselineName = None,
) -> None:
    """Export results to SAEBench's format or as a data set for the Hub; no model is loaded."""
    from sae_lm_eval.errors import UserError
    from sae_lm_eval.exchange.new_files import SAEBENCH_MARK, check_place
    from sae_lm_eval.runtime.placed_files import refuse_linked

    if saebench is None and hub is None:
        raise UserError("Say what for: --saebench FOLDER, or --hub org/name.")
    if hub is None and (texts or dry_run or output_path):
        raise UserError("--texts, --dry_run and --output_path are of --hub, which is not given.")
    if hub is not None:
        from sae_lm_eval.exchange.hub_upload import check_dataset_folder, check_repo

        check_repo(hub)
        if output_path is None:
            refuse_linked(out / FOLDER, "Remove it, or give an --output_path.")
        check_dataset_folder(output_path or out / FOLDER)
    if saebench is not None:
        check_place(saebench, (), SAEBENCH_MARK)

    from sae_lm_eval.results.find import find_results

    results = find_results(out, baseline)
    if saebench is not None:
        from sae_lm_eval.exchange.saebench_export import say_saebench, write_saebench

        for sentence in say_saebench(write_saebench(results[1], saebench), saebench):
            typer.echo(sentence)
    if hub is not None:
        words = ["sae-lm-eval", "export", str(out), "--hub", hub, *(["--texts"] if texts else [])]
        words += ["--baseline", baseline] if baseline else []
        _to_hub(results, hub, output_path or out / FOLDER, texts=texts, dry_run=dry_run, command=shlex.join(words))


def _to_hub(results: tuple, repo: str, folder: Path, *, texts: bool, dry_run: bool, command: str) -> None:
    from sae_lm_eval.exchange.hub_dataset import dataset_files
    from sae_lm_eval.exchange.hub_upload import has_token, upload, write_folder
    from sae_lm_eval.report import assemble

    comparison = assemble.compare_tasks(*results)
    files = dataset_files(comparison, assemble.build(comparison), command=command, texts=texts)
    write_folder(files, folder)
    if dry_run or not has_token():
        why = "" if dry_run else " There is no token of the Hub here: `hf auth login` stores one."
        typer.echo(f"Nothing was uploaded.{why} In '{folder}' is what would be: {len(files)} files.")
        return
    typer.echo(f"Uploaded to the data set {repo}: {upload(folder, repo, command, files)}")
    typer.echo("A data set that was made for it is private; its settings on the Hub make it public.")
