"""`sae-lm-eval run`: the baseline and variants with lm_eval's own flags, then the comparison and the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lm_eval.cli.code_of_files import ask_about_code, entries_of_models
from sae_lm_eval.cli.first_words import say_loading
from sae_lm_eval.cli.lm_eval_flags import settings_of
from sae_lm_eval.cli.options import CategoriesFile, DocumentsBy
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import for_spreadsheets

if TYPE_CHECKING:
    from sae_lm_eval.runs.sweep import Sweep

LM_EVAL_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
OVER_SEEDS = "over_seeds.csv"
INTERRUPTED = 130  # as a shell has it for Ctrl-C
Edits = Annotated[
    list[str] | None,
    typer.Option(help="A variant that changes the model itself: quantize?bits=4, prune?share=0.3. Repeatable."),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        help="none, zero, mean or random_error, at the sites of each variant; prune, lowrank, quantize or noise of the "
        "model's weights, as a ruler; or baseline_again, for the noise floor. Repeatable."
    ),
]


def run_command(
    context: typer.Context,
    sae: Annotated[
        list[str] | None,
        typer.Option(help="A variant: SPEC, or SPEC,splice=zero,hook=... with arguments of its own. Repeatable."),
    ] = None,
    edit: Edits = None,
    control: Controls = None,
    model_args: Annotated[
        str, typer.Option("--model_args", "-a", help="As for lm_eval: pretrained=gpt2,dtype=...")
    ] = "",
    output_path: Annotated[str | None, typer.Option("--output_path", "-o", help="For results and report.")] = None,
    categories: CategoriesFile = None,
    docs_by: DocumentsBy = None,
    memory: Annotated[float | None, typer.Option(help="Gigabytes for the dictionaries of one forked pass.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Share the work over a Ray cluster: its ADDRESS, or 'local' for one on this machine."),
    ] = None,
    fewshot_seeds: Annotated[
        str | None,
        typer.Option(
            "--fewshot_seeds",
            help="1,2,3: repeat the run with other few-shot examples, and include their choice in the intervals.",
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run and for how long; write nothing.")] = False,
) -> None:
    """Evaluate the untouched model and variants in one go: run SWEEP.yaml, or --model_args ... --sae ... --tasks ...

    lm_eval's flags (--tasks, --num_fewshot, --limit, ...) come last, and override the file. Each model is written as
    an ordinary results folder of lm_eval's; the comparison and the report follow. The same command continues an
    interrupted run.
    """
    from sae_lm_eval.runs.checks import check
    from sae_lm_eval.runs.several_models import lists_models
    from sae_lm_eval.runs.sweep import sweep_of

    given = {"categories": categories, "docs_by": docs_by, "memory": memory, "ray": ray, "output_path": output_path}
    content = content_from(context, model_args, (sae or [], edit or []), control or [], given)
    if lists_models(content["model_args"]):
        _run_several(content, fewshot_seeds=fewshot_seeds, plan=plan)
        return
    sweep = sweep_of(content)
    if sweep.output_path is None and not plan:
        raise UserError("--output_path is missing: name a folder for the results.")
    check(sweep, sweep.output_path)
    if fewshot_seeds is not None:
        _check_seeds(sweep, fewshot_seeds)
    say_loading()
    if plan or sweep.output_path is None:
        show_plan(sweep, sweep.output_path)
        return
    with resumable():
        if fewshot_seeds is None:
            failed = run_and_report(sweep, sweep.output_path)
        else:
            failed = run_over_seeds(sweep, sweep.output_path, fewshot_seeds)
    if failed:
        raise typer.Exit(1)


def _run_several(content: dict[str, Any], *, fewshot_seeds: str | None, plan: bool) -> None:
    """Run the sweep that `content` describes for each of its models, or show what would run."""
    from sae_lm_eval.runs.asked_documents import user_path
    from sae_lm_eval.runs.several_models import check_models, model_notes, run_each, sweeps_of

    sweeps = sweeps_of(content)
    given = content.get("output_path")
    output_path = None if given is None else user_path(given, "output_path")
    if fewshot_seeds is not None:
        raise UserError("--fewshot_seeds is for a run of one model: give one, or leave it out.")
    if output_path is None and not plan:
        raise UserError("--output_path is missing: name a folder for the results.")
    check_models(sweeps, output_path)
    say_loading()
    if plan or output_path is None:
        for sentence in model_notes(sweeps):
            typer.echo(sentence, err=True)
        for number, (name, sweep) in enumerate(sweeps.items(), start=1):
            typer.echo(f"Model {number} of {len(sweeps)}, {name}:")
            show_plan(sweep, None if output_path is None else output_path / name)
        return

    def run(sweep: Sweep, folder: Path) -> bool:
        typer.echo(f"Model {[*sweeps].index(folder.name) + 1} of {len(sweeps)}, {folder.name}:", err=True)
        return run_and_report(sweep, folder, tables=0)

    with resumable():
        failed = run_each(sweeps, output_path, run, lambda sentence: print(sentence, file=sys.stderr))
    _report_several(output_path, sweeps)
    if any(failed.values()):
        raise typer.Exit(1)


def _report_several(output_path: Path, sweeps: dict[str, Sweep]) -> None:
    """Write and print the report on several models; of processes the first one does."""
    from sae_lm_eval.cli.report import print_report, say_written
    from sae_lm_eval.report.transfer import write_transfer_report
    from sae_lm_eval.runtime.processes import rank
    from sae_lm_eval.runtime.run_folder import REPORT

    if rank() != 0:
        return
    first = next(iter(sweeps.values()))
    pairing = {"categories": first.categories, "docs_by": first.docs_by}
    print_report(write_transfer_report(output_path, output_path / REPORT, **pairing))
    say_written(output_path / REPORT)


def _check_seeds(sweep: Sweep, fewshot_seeds: str) -> None:
    from sae_lm_eval.runs.fewshot_seeds import seeds_of

    if not sweep.settings.get("num_fewshot"):
        raise UserError("--fewshot_seeds needs in-context examples to choose: give --num_fewshot, as in 5.")
    seeds_of(fewshot_seeds)


@contextmanager
def resumable() -> Iterator[None]:
    """Inside the scope Ctrl-C ends the command with a sentence: the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted. The same command continues from here.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def run_over_seeds(sweep: Sweep, output_path: Path, fewshot_seeds: str) -> bool:
    """Run a sweep for each few-shot seed, each in its folder, and write over_seeds.csv; whether a variant failed."""
    from rich.console import Console

    from sae_lm_eval.cli.tables import TextTable, print_table
    from sae_lm_eval.comparison.compare import paired_comparison
    from sae_lm_eval.comparison.shots import over_seeds
    from sae_lm_eval.report.formatting import fixed_decimals
    from sae_lm_eval.results import find
    from sae_lm_eval.runs.fewshot_seeds import seeds_of, with_seed
    from sae_lm_eval.runtime.placed_files import place_files, refuse_linked
    from sae_lm_eval.runtime.processes import rank
    from sae_lm_eval.schema import VERSION

    failed, comparisons = False, {}
    for seed in seeds_of(fewshot_seeds):
        folder = output_path / f"fewshot_seed_{seed}"
        refuse_linked(folder, "Remove it, or give another --output_path.")
        settings = {**sweep.settings, "seed": with_seed(sweep.settings.get("seed"), seed)}
        failed |= run_and_report(replace(sweep, settings=settings), folder)
        if rank() == 0 and not failed:
            comparisons[seed] = paired_comparison(*find.find_results(folder), docs_by=sweep.docs_by)
    if rank() != 0 or failed:
        return failed
    frame = over_seeds(comparisons)
    table = for_spreadsheets(frame.assign(schema=VERSION)).to_csv(index=False).encode()
    place_files({OVER_SEEDS: table}, output_path, what="The table", otherwise="Give another --output_path.")
    title = "Drops (pp) with 95% intervals over questions and the choice of examples"
    columns = frame.drop(columns="interval")
    rows = [
        [fixed_decimals(value) if isinstance(value, float) else str(value) for value in row]
        for row in columns.to_numpy()
    ]
    print_table(Console(), TextTable(list(columns), rows, title, words=(0, 1)))
    typer.echo(f"Written: {output_path / OVER_SEEDS}")
    return False


def run_and_report(sweep: Sweep, output_path: Path, tables: int | None = None) -> bool:
    """Run a sweep, or what is left of it, and report it; whether some variant failed.

    Of the report the headline and the first `tables` tables are printed, or all that are short.
    """
    from sae_lm_eval.cli.effective_compute import offer_curves
    from sae_lm_eval.cli.report import print_report, say_written, write_report
    from sae_lm_eval.runs.outcome import summary
    from sae_lm_eval.runs.run import evaluate
    from sae_lm_eval.runs.settings import lm_eval_config
    from sae_lm_eval.runtime.processes import rank
    from sae_lm_eval.runtime.run_folder import LOG, REPORT

    settings = lm_eval_config(sweep)
    began = time.monotonic()
    finished = evaluate(sweep, settings, output_path)
    if rank() != 0:
        return bool(finished.failed)
    if len(finished.failed) < len(finished.outcomes) - 1:
        report = write_report(output_path, output_path / REPORT, categories=sweep.categories, docs_by=sweep.docs_by)
        print_report(report, tables)
        if tables is None:
            say_written(output_path / REPORT)
            offer_curves(output_path)
    typer.echo(summary(finished, time.monotonic() - began), err=True)
    if finished.failed:  # each with its reason, as it failed
        typer.echo(f"Failed, as said above: {', '.join(outcome.name for outcome in finished.failed)}.", err=True)
    if finished.requests:
        typer.echo(f"What the libraries said is in {output_path / LOG}.", err=True)
    return bool(finished.failed)


def sweep_from(
    context: typer.Context,
    model_args: str,
    variants: tuple[list[str], list[str]],
    controls: list[str],
    given: dict[str, Any],
) -> Sweep:
    """The sweep of what the file says, and the command line after it."""
    from sae_lm_eval.runs.sweep import sweep_of

    return sweep_of(content_from(context, model_args, variants, controls, given))


def content_from(
    context: typer.Context,
    model_args: str,
    variants: tuple[list[str], list[str]],
    controls: list[str],
    given: dict[str, Any],
) -> dict[str, Any]:
    """What the file says, and the command line after it, under the keys of a sweep file."""
    from sae_lm_eval.files.reading import at_home
    from sae_lm_eval.runs.argument_text import named_values
    from sae_lm_eval.runs.sweep import as_list, read_sweep

    flags = list(context.args)
    while flags and "=" in flags[0] and not flags[0].startswith("-") and not Path(flags[0]).exists():
        model_args = f"{model_args},{flags.pop(0)}"  # as lm_eval takes them: --model_args pretrained=gpt2 dtype=float32
    file = at_home(flags.pop(0)) if flags and not flags[0].startswith("-") else None
    settings = settings_of(
        flags, {flag for option in context.command.params for flag in option.opts}, context.info_name or "run"
    )
    content = read_sweep(file) if file else {}
    of_file = content.get("model_args")
    of_file = {} if of_file is None else of_file
    if isinstance(of_file, str):
        of_file = named_values(of_file, f"'{file}', model_args,")
    if not isinstance(of_file, dict):
        raise UserError(f"model_args: {of_file!r} is no mapping, such as {{pretrained: gpt2}}.")
    of_flags = named_values(model_args)
    ask_about_code(
        [{**content, **settings}, {**of_file, **of_flags}, *entries_of_models(of_file)], [settings, of_flags], file
    )
    content["model_args"] = {**of_file, **of_flags}
    saes, edits = variants
    if saes or edits:
        listed = [*(named_values(f"sae={sae}", f"--sae {sae}") for sae in saes), *({"edit": edit} for edit in edits)]
        content["variants"] = [*as_list(content.get("variants")), *listed]
    if not content.get("variants") and not {"sae", "edit"} & content["model_args"].keys():
        raise UserError(
            "--sae is missing: name a dictionary for each variant, as in --sae RELEASE#ID --sae RELEASE#ID2, or give "
            "a sweep file first."
        )
    if controls:
        content["controls"] = controls
    return content | {name: value for name, value in {**settings, **given}.items() if value is not None}


def show_plan(sweep: Sweep, output_path: Path | None) -> None:
    """What a run of `sweep` in `output_path` would do, and how long it takes."""
    from rich.console import Console

    from sae_lm_eval.cli.tables import TextTable, print_sentence, print_table
    from sae_lm_eval.runs import plan

    sweep_plan = plan.plan_sweep(sweep, output_path)
    console = Console()
    print_table(console, TextTable(plan.HEADS, plan.plan_rows(sweep_plan), words=range(len(plan.HEADS))))
    for sentence in plan.plan_sentences(sweep_plan):
        print_sentence(console, sentence, soft_wrap=True)
    measured = _measured(sweep) if sweep_plan.pace is None and sweep_plan.left else None
    print_sentence(console, plan.time_sentence(sweep_plan, measured), soft_wrap=True)


def _measured(sweep: Sweep) -> dict[str, float] | None:
    """What `plan.time_sentence` estimates by; None where the user cuts the measuring short."""
    from tempfile import TemporaryDirectory

    from sae_lm_eval.runs.model_pool import LoadedSweep
    from sae_lm_eval.runs.pace import SECONDS, seconds_of_baseline
    from sae_lm_eval.runs.settings import lm_eval_config
    from sae_lm_eval.runtime.progress import quiet

    message = f"Running a part of it, for about {SECONDS:.0f} seconds once the model is loaded. Ctrl-C leaves that out."
    typer.echo(message, err=True)
    try:
        with TemporaryDirectory() as folder, quiet(Path(folder) / "log"):
            return seconds_of_baseline(LoadedSweep(sweep, lm_eval_config(sweep)))
    except KeyboardInterrupt:
        return None
