"""`sae-lm-eval where`: which positions' errors cost what a variant lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_lm_eval.cli.run import resumable, sweep_from
from sae_lm_eval.errors import UserError

if TYPE_CHECKING:
    from sae_lm_eval.runs.asked import VariantRequest
    from sae_lm_eval.runs.inquiry import Inquiry
    from sae_lm_eval.runs.sweep import Sweep
    from sae_lm_eval.runs.where_rows import Explained

Divisions = Annotated[
    list[str] | None,
    typer.Option(
        help="What divides the error: segment, kind, first:N, distance, norm:PARTS, regex:NAME=PATTERN, "
        "field:NAME, direction, component, missed. Repeatable; segment and kind if none is named. "
        "Several dictionaries are divided by site too."
    ),
]
Latents = Annotated[
    int,
    typer.Option(help="How many latents to name whose activations the margins depend on; each of them is ablated."),
]
Questions = Annotated[
    list[str] | None,
    typer.Option(
        help="A question to show token by token: DOC_ID, TASK:DOC_ID, or 'worst' for those that lost and gained "
        "most. Repeatable."
    ),
]


def where_command(
    context: typer.Context,
    sae: Annotated[
        list[str] | None,
        typer.Option(help="The variant: SPEC, or SPEC,splice_tokens=... Several are explained in turn."),
    ] = None,
    model_args: Annotated[
        str, typer.Option("--model_args", "-a", help="As for lm_eval: pretrained=gpt2,dtype=...")
    ] = "",
    by: Divisions = None,
    held_out: Annotated[
        bool,
        typer.Option("--held_out", help="Score half of the documents, and fit on the other half."),
    ] = False,
    latents: Latents = 0,
    question: Questions = None,
    output_path: Annotated[
        str | None, typer.Option("--output_path", "-o", help="A folder; results go into its subfolder where/.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the cost; load and write nothing.")] = False,
) -> None:
    """Find out which positions' errors cause a variant's drop: --model_args ... --sae ... --tasks ...

    For each class of positions, the tasks are scored without the variant's error there, and with the error there alone.
    lm_eval's flags (--tasks, --num_fewshot, --limit, ...) come last, as for run. The same command continues an
    interrupted run.
    """
    from sae_lm_eval.attribution.classes import DEFAULT
    from sae_lm_eval.cli.first_words import say_loading
    from sae_lm_eval.runs.checks import check
    from sae_lm_eval.runs.inquiry import Inquiry
    from sae_lm_eval.runtime.run_folder import check_folder
    from sae_lm_eval.splicing.choices import choices_of
    from sae_lm_eval.splicing.splice_arguments import SpliceArguments

    inquiry = Inquiry(tuple(by or DEFAULT), held_out, latents=latents, questions=tuple(question or ()))
    sweep = sweep_from(context, model_args, (sae or [], []), [], {"output_path": output_path})
    if sweep.output_path is None and not plan:
        raise UserError("--output_path is missing: name a folder for what is found.")
    if other := [request.name for request in sweep.variants if not _has_error(request)]:
        raise UserError(f"{other[0]} has no dictionary's error to put back: where explains splice=reconstruction.")
    check(sweep, None)
    for request in sweep.variants:
        inquiry.check_edits(request.name, choices_of(SpliceArguments(**request.arguments)).edits)
    if sweep.output_path is not None:
        check_folder(sweep.output_path)
    say_loading()
    if plan or sweep.output_path is None:
        _show_plan(sweep, inquiry)
        return
    from sae_lm_eval.runs.settings import lm_eval_config
    from sae_lm_eval.runs.where import explain_drops

    with resumable():
        explanations = explain_drops(sweep, lm_eval_config(sweep), sweep.output_path, inquiry)
    for explanation in explanations:
        _print(explanation, sweep.output_path)


def _show_plan(sweep: Sweep, inquiry: Inquiry) -> None:
    from rich.console import Console

    from sae_lm_eval.cli.tables import print_sentence
    from sae_lm_eval.runs.plan import plan_sweep

    for sentence in inquiry.plan(plan_sweep(sweep, None)):
        print_sentence(Console(), sentence, soft_wrap=True)


def _has_error(variant: VariantRequest) -> bool:
    """Whether a dictionary's reconstruction takes the place of something."""
    arguments = variant.arguments
    return (
        arguments.get("edit") is None
        and arguments.get("peft") is None
        and arguments.get("splice", "reconstruction") == "reconstruction"
    )


def _print(explanation: Explained, output_path: Path) -> None:
    from rich.console import Console

    from sae_lm_eval.cli.report import print_findings
    from sae_lm_eval.cli.tables import print_sentence
    from sae_lm_eval.report.where_records import FOLDER
    from sae_lm_eval.report.where_tables import caption, class_tables, latent_tables, norm_edges, where_sentences

    console, record = Console(), explanation.record()
    captions = [
        caption(record, counted=bool(record["coverage"])),
        *([norm_edges(record)] if record["norm_edges"] else []),
    ]
    if console.is_terminal:
        captions.append("Intervals, and columns that have no room here, are in the record.")
    tables = latent_tables(record, overall=True)
    captions += [table.caption for table in tables]
    print_findings(console, where_sentences(record), (*class_tables(record), *tables), captions, ())
    for kind in ("json", *(["html"] if record.get("questions") else [])):
        print_sentence(console, f"Written: {output_path / FOLDER / explanation.name}.{kind}", soft_wrap=True)
