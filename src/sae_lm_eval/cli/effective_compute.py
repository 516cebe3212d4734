"""`sae-lm-eval effective-compute`: losses, or folders of results, in; effective compute out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sae_lm_eval.cli import effective_compute_options as options
from sae_lm_eval.cli.effective_compute_options import Curve, Format, Losses
from sae_lm_eval.cli.tables import TextTable, print_grouped, print_sentence
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import for_spreadsheets
from sae_lm_eval.report.formatting import general
from sae_lm_eval.report.text_tables import (
    beside_the_law,
    converted_rows,
    curve_command,
    estimate_rows,
    literature_rows,
    markdown_table,
    rise_rows,
    summary_rows,
)
from sae_lm_eval.report.text_tables import fraction as fraction_text

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from sae_lm_eval.scaling import DeltaCE, EffectiveCompute, Original
    from sae_lm_eval.scaling.of_results import Converted


def effective_compute_command(
    out: options.Out = None,
    ce_baseline: options.CeBaseline = None,
    ce_spliced: options.CeSpliced = None,
    delta_se: options.DeltaSe = None,
    documents: options.Documents = None,
    loss_recovered: options.LossRecovered = None,
    ce_ablated: options.CeAblated = None,
    ablation: options.Ablation = None,
    model: options.Model = None,
    params: options.Params = None,
    tokens: options.Tokens = None,
    flops: options.Flops = None,
    vocabulary: options.Vocabulary = None,
    law: options.LawName = "besiroglu2024",
    all_laws: options.AllLaws = False,
    same_text: options.SameText = False,
    family: options.FamilyFile = None,
    checkpoints: options.CheckpointsFile = None,
    text: options.TextName = None,
    bytes_per_token: options.BytesPerToken = None,
    fraction: options.Fraction = None,
    literature: options.Literature = False,
    level: options.Level = 0.95,
    seed: options.Seed = 0,
    output_format: options.OutputFormat = Format.table,
) -> None:
    """Convert a rise of the loss into effective compute: the fraction of training compute that gives the same loss."""
    from rich.console import Console

    from sae_lm_eval import scaling

    console = Console()
    losses = Losses(ce_baseline, ce_spliced, delta_se, documents, loss_recovered, ce_ablated, ablation)
    original = {"model": model, "params": params, "tokens": tokens, "flops": flops, "vocabulary": vocabulary}
    original["bytes_per_token"] = bytes_per_token
    curve = Curve(law, all_laws, same_text, family, checkpoints, text, level, seed)
    if literature:
        if losses.given or out is not None or any(value is not None for value in original.values()):
            raise UserError("--literature prints the published figures alone: leave out losses, results and models.")
        _print_literature(scaling.convert_literature(law, level=level, rng=seed), console, output_format)
    elif fraction is not None:
        if losses.given or out is not None:
            raise UserError("--fraction asks for the rise of the loss: leave out losses and results.")
        _print_rises(fraction, scaling.get_original(**original), law, console, output_format)
    elif out is not None:
        if losses.given:
            raise UserError("Results folders hold the losses: leave out the folder, or --ce-baseline and the like.")
        _print_folder(out, original, curve.options(), console, output_format)
    else:
        _print_losses(losses.delta(), original, curve.options(), console, output_format)


def _print_losses(
    delta: DeltaCE, original: dict[str, Any], curve: dict[str, Any], console: Console, output_format: Format
) -> None:
    from sae_lm_eval import scaling

    result = scaling.effective_compute(delta, **original, **curve)
    lacks = result.original.lacks
    if lacks is not None and all(estimate.reason == lacks for estimate in result.estimates):
        raise UserError(f"Effective compute {lacks}.")
    if output_format is Format.table:
        _print_result(result, console)
    else:
        _print_frame(result.to_frame(), output_format)


def _print_folder(
    out: Path, original: dict[str, Any], curve: dict[str, Any], console: Console, output_format: Format
) -> None:
    from sae_lm_eval.scaling import of_results as folder

    conversions = folder.convert(out, original=original, **curve)
    if output_format is not Format.table:
        _print_frame(folder.to_frame(conversions), output_format)
        return
    for described in dict.fromkeys(_describe_original(conversion.result) for conversion in conversions):
        print_sentence(console, described)
    notes: dict[str, int] = {}
    print_grouped(console, _table(converted_rows(conversions, notes)))
    _print_notes(notes, console)
    _offer_curves(conversions, out, console)


def offer_curves(out: Path) -> None:
    """Print the commands that measure curves of the texts in `out`, where the model has a known family."""
    from rich.console import Console

    from sae_lm_eval.scaling import of_results as folder

    try:
        conversions = folder.convert(out, original={})
    except UserError:
        return  # without a spliced loss there is nothing to settle
    _offer_curves(conversions, out, Console(stderr=True))


def _offer_curves(conversions: list[Converted], out: Path, console: Console) -> None:
    texts = {conversion.task: conversion.result for conversion in conversions if conversion.category is None}
    for command in filter(None, (curve_command(result, like=out, task=task) for task, result in texts.items())):
        _offer(command, console)


def _print_result(result: EffectiveCompute, console: Console) -> None:
    delta = result.delta
    losses = f"baseline CE {general(delta.baseline)}, spliced CE {general(delta.spliced)}"
    if delta.loss_recovered is not None:
        losses += f", {delta.ablation}-ablation CE {general(delta.ablated)}"
        losses += f", loss recovered {general(delta.loss_recovered)}"
    print_sentence(console, f"delta CE {general(delta.value)} nats/token ({losses})")
    print_sentence(console, _describe_original(result))
    notes: dict[str, int] = {}
    print_grouped(console, _table(estimate_rows(result, notes)))
    quoted = result.preferred
    if quoted.fraction is not None or quoted.bound is not None:
        print_sentence(
            console, f"To quote: {quoted.quantity} {fraction_text(quoted)}, {quoted.definition}, {quoted.curve}."
        )
    for sentence in beside_the_law(result):
        print_sentence(console, sentence)
    _print_notes(notes, console)
    _offer(curve_command(result), console)


def _offer(command: str | None, console: Console) -> None:
    if command is not None:
        print_sentence(console, "A curve of the model's own family on the same text would settle it:")
        print_sentence(console, command, soft_wrap=True)


def _print_rises(fraction: float, original: Original, law: str, console: Console, output_format: Format) -> None:
    """The rise of the loss that leaves a fraction: by the law, and by all in force."""
    from sae_lm_eval.scaling.inverse import loss_rises
    from sae_lm_eval.scaling.law_sources import load_law
    from sae_lm_eval.scaling.laws import laws

    chosen = load_law(law)
    others = [other for other in laws().values() if not other.superseded and other.name != chosen.name]
    frame = loss_rises(fraction, original, [chosen, *others])
    if output_format is not Format.table:
        _print_frame(frame, output_format)
        return
    print_sentence(console, f"The rise of the loss that leaves {fraction:g}, within each law:")
    notes: dict[str, int] = {}
    print_grouped(console, _table(rise_rows(frame, notes)))
    _print_notes(notes, console)


def _print_notes(notes: dict[str, int], console: Console) -> None:
    for note, mark in notes.items():
        print_sentence(console, f"{mark}. {note}")


def _describe_original(result: EffectiveCompute) -> str:
    original = result.original
    size = f"{general(original.params)} parameters ({original.params_source})"
    data = f"{general(original.tokens)} training tokens ({original.tokens_source})"
    return f"{original.name}: {size}, {data}"


def _print_literature(table: pd.DataFrame, console: Console, output_format: Format) -> None:
    from sae_lm_eval.scaling import cited_works, summarise_literature

    if output_format is not Format.table:
        _print_frame(table, output_format)
        return
    print_grouped(console, _table(literature_rows(table)), by=3)
    print_grouped(console, _table(summary_rows(summarise_literature(table))), by=3)
    console.print("Loss recovered is the work's own; ablation CE is published or follows from it and delta CE.")
    console.print("Effective compute is one within the law; its intervals are in --format csv.")
    for key in dict.fromkeys(table["work"]):
        print_sentence(console, f"{cited_works()[key]['short']}: {cited_works()[key]['citation']}")


def _table(rows: list[dict[str, str]]) -> TextTable:
    return TextTable(list(rows[0]), [list(row.values()) for row in rows])


def _print_frame(frame: pd.DataFrame, output_format: Format) -> None:
    """A frame for other programs: undefined values stay empty (CSV), null (JSON) or n/a (Markdown)."""
    import json

    if output_format is Format.json:
        typer.echo(json.dumps(frame.to_dict("records"), indent=1, default=float))
    elif output_format is Format.csv:
        typer.echo(for_spreadsheets(frame).to_csv(index=False), nl=False)
    else:
        typer.echo(markdown_table([{k: general(v) for k, v in row.items()} for row in frame.to_dict("records")]))
