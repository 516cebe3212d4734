"""`sae-lm-eval effective-compute`: losses, or folders of results, in; effective compute out."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    markdown,
    rise_rows,
    summary_rows,
)
from sae_lm_eval.report.text_tables import fraction as fraction_text

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from sae_lm_eval.scaling import DeltaCE, EffectiveCompute, Original


class Format(enum.StrEnum):
    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"


def effective_compute(
    out: Annotated[
        Path | None, typer.Argument(help="Results of sae_fidelity tasks: a folder that lm_eval or run wrote.")
    ] = None,
    ce_baseline: Annotated[float | None, typer.Option(help="CE of the original, nats/token.")] = None,
    ce_spliced: Annotated[float | None, typer.Option(help="CE with the dictionary spliced in, nats/token.")] = None,
    delta_se: Annotated[float | None, typer.Option(help="Standard error of delta CE, paired over documents.")] = None,
    documents: Annotated[
        Path | None, typer.Option(help="CSV with baseline_nats, spliced_nats, tokens per document.")
    ] = None,
    loss_recovered: Annotated[
        float | None, typer.Option(help="Instead of --ce-spliced: a fraction, with its ablation CE.")
    ] = None,
    ce_ablated: Annotated[float | None, typer.Option(help="Ablation CE behind --loss-recovered.")] = None,
    ablation: Annotated[str | None, typer.Option(help="Kind of the ablation: zero or mean.")] = None,
    model: Annotated[str | None, typer.Option(help="A known model, such as pythia-70m or google/gemma-7b.")] = None,
    params: Annotated[float | None, typer.Option(help="Parameters with embeddings, such as 124e6.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Training tokens, such as 1e10.")] = None,
    flops: Annotated[
        float | None, typer.Option(help="Training FLOPs; with one of the two above, the other follows.")
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(help="Tokens in the vocabulary; a spliced CE above its logarithm is not converted.")
    ] = None,
    law: Annotated[
        str, typer.Option(help="A law by name, a JSON file of constants, or a CSV of runs to fit.")
    ] = "besiroglu2024",
    all_laws: Annotated[bool, typer.Option("--all-laws", help="Tabulate every law.")] = False,
    same_text: Annotated[
        bool,
        typer.Option("--same-text", help="The law's text and tokenizer are those of the losses: also R = L - E."),
    ] = False,
    family: Annotated[
        str | None,
        typer.Option(help="Losses of several models on the same text: a CSV, or a built-in family."),
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Losses of the original's own checkpoints on the same text: a CSV.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="The text of the losses, one with known pairs: pile, c4, wikitext, ..."),
    ] = None,
    bytes_per_token: Annotated[
        float | None,
        typer.Option(help="Of the model's tokenizer; converts losses where the law's is known."),
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="The inverse: which rise of the loss leaves this fraction, such as 0.1.")
    ] = None,
    literature: Annotated[bool, typer.Option("--literature", help="Published figures, converted.")] = False,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    output_format: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
) -> None:
    """What fraction of the original's training compute buys the loss of the spliced model."""
    from rich.console import Console

    from sae_lm_eval import scaling

    console = Console()
    losses = (ce_baseline, ce_spliced, delta_se, documents, loss_recovered, ce_ablated, ablation)
    original = {"model": model, "params": params, "tokens": tokens, "flops": flops, "vocabulary": vocabulary}
    original["bytes_per_token"] = bytes_per_token
    given = any(value is not None for value in losses)
    if literature:
        if given or out is not None or any(value is not None for value in original.values()):
            raise UserError("--literature prints the published figures alone: leave out losses, results and models.")
        _print_literature(scaling.convert_literature(law, level=level, rng=seed), console, output_format)
        return
    if fraction is not None:
        if given or out is not None:
            raise UserError("--fraction asks for the rise of the loss: leave out losses and results.")
        _print_rises(fraction, scaling.get_original(**original), law, console, output_format)
        return
    curve = {
        "law": "all" if all_laws else law,
        "text": text,
        "family": family,
        "checkpoints": checkpoints,
        "level": level,
    }
    curve |= {"law_text": "same" if same_text else "other", "rng": seed}
    if out is not None:
        if given:
            raise UserError("Results folders hold the losses: leave out the folder, or --ce-baseline and the like.")
        _print_folder(out, original, curve, console, output_format)
        return
    result = scaling.effective_compute(_delta(*losses), **original, **curve)
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

    found = folder.convert(out, original=original, **curve)
    if output_format is not Format.table:
        _print_frame(folder.to_frame(found), output_format)
        return
    for described in dict.fromkeys(_describe_original(made.result) for made in found):
        print_sentence(console, described)
    notes: dict[str, int] = {}
    print_grouped(console, _table(converted_rows(found, notes)))
    _print_notes(notes, console)
    for command in dict.fromkeys(curve_command(made.result, like=out) for made in found):
        _offer(command, console)


def _delta(
    ce_baseline: float | None,
    ce_spliced: float | None,
    delta_se: float | None,
    documents: Path | None,
    loss_recovered: float | None,
    ce_ablated: float | None,
    ablation: str | None,
) -> DeltaCE:
    """Delta CE from exactly one of: documents, loss recovered, two losses."""
    from sae_lm_eval import scaling

    ways = [documents is not None, loss_recovered is not None, ce_spliced is not None]
    if sum(ways) > 1:
        raise UserError("Give one of --documents, --loss-recovered and --ce-spliced, not several.")
    if loss_recovered is None and (ce_ablated is not None or ablation is not None):
        raise UserError("--ce-ablated and --ablation belong to --loss-recovered: give it, or leave them out.")
    if delta_se is not None and ce_spliced is None:
        raise UserError("--delta-se belongs to --ce-baseline and --ce-spliced; leave it out here.")
    if documents is not None:
        if ce_baseline is not None:
            raise UserError("--documents holds the baseline CE; leave --ce-baseline out.")
        return scaling.read_documents(documents)
    if loss_recovered is not None:
        return scaling.delta_from_loss_recovered(
            loss_recovered=loss_recovered, ce_baseline=ce_baseline, ce_ablated=ce_ablated, ablation=ablation
        )
    if ce_baseline is None or ce_spliced is None:
        raise UserError(
            "Give two losses (--ce-baseline 3.139 --ce-spliced 3.283), or a loss recovered with its ablation "
            "CE (--loss-recovered 0.993 --ce-ablated 12.4 --ablation zero --ce-baseline 3.139), or documents "
            "(--documents FILE.csv)."
        )
    return scaling.delta_from_losses(ce_baseline=ce_baseline, ce_spliced=ce_spliced, standard_error=delta_se)


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
        print_sentence(console, "A curve of the model's own family on the run's own text would settle it:")
        print_sentence(console, command, soft_wrap=True)


def _print_rises(fraction: float, original: Original, law: str, console: Console, output_format: Format) -> None:
    """The rise of the loss that leaves a fraction: by the law, and by all in force."""
    from sae_lm_eval.scaling.inverse import loss_rises
    from sae_lm_eval.scaling.law_sources import load_law
    from sae_lm_eval.scaling.laws import laws

    asked = load_law(law)
    others = [one for one in laws().values() if not one.superseded and one.name != asked.name]
    frame = loss_rises(fraction, original, [asked, *others])
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
    from sae_lm_eval.scaling import summarise_literature, works

    if output_format is not Format.table:
        _print_frame(table, output_format)
        return
    print_grouped(console, _table(literature_rows(table)), by=3)
    print_grouped(console, _table(summary_rows(summarise_literature(table))), by=3)
    console.print("Loss recovered is the work's own; ablation CE is published or follows from it and delta CE.")
    console.print("Effective compute is law-relative; its intervals are in --format csv.")
    for key in dict.fromkeys(table["work"]):
        print_sentence(console, f"{works()[key]['short']}: {works()[key]['citation']}")


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
        typer.echo(markdown([{k: general(v) for k, v in row.items()} for row in frame.to_dict("records")]))
