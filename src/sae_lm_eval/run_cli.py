"""`sae-lm-eval run`: the baseline and variants with lm_eval's own flags, then the comparison and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_lm_eval.errors import UserError

LM_EVAL_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def run(
    context: typer.Context,
    sae: Annotated[
        list[str] | None,
        typer.Option(help="A variant: SPEC, or SPEC,splice=zero,hook=... with arguments of its own. Repeatable."),
    ] = None,
    model_args: Annotated[str, typer.Option("--model_args", help="As for lm_eval: pretrained=gpt2,dtype=...")] = "",
    output_path: Annotated[Path | None, typer.Option("--output_path", help="Where results and report go.")] = None,
    categories: Annotated[
        Path | None, typer.Option(help="YAML: category -> tasks or groups, or {field: name} of the documents.")
    ] = None,
) -> None:
    """Evaluate the untouched model and variants in one go, with lm_eval's flags (--tasks, --num_fewshot, --limit, ...).

    Each is written as an ordinary results folder of lm_eval's; the comparison and the report follow. The same
    command again continues where it was cut short.
    """
    from sae_lm_eval import running as runs
    from sae_lm_eval.adapter import OWN
    from sae_lm_eval.report_cli import report

    if output_path is None:
        raise UserError("--output_path is missing: name a folder for the results.")
    if not sae:
        raise UserError(
            "--sae is missing: name a dictionary for each variant, as in --sae RELEASE#ID --sae RELEASE#ID2."
        )
    given = _arguments(model_args)
    if "sae" in given:
        raise UserError("Name dictionaries with --sae, one for each variant, and not with sae= in --model_args.")
    own = {name: given.pop(name) for name in OWN if name in given}
    asked = [{**own, **_arguments(f"sae={text}")} for text in sae]
    outcomes = runs.run(
        given,
        [runs.Asked(runs.folder_name(one), one) for one in asked],
        _settings(context.args, model_args),
        output_path,
    )
    failed = [outcome for outcome in outcomes if outcome.failed]
    if len(failed) == len(asked):
        raise UserError(f"None of the variants could be made. {failed[0].failed}")
    report(output_path, categories=categories)
    for outcome in failed:
        typer.echo(f"Failed: {outcome.name}: {outcome.failed}", err=True)
    if failed:
        raise typer.Exit(1)


def _arguments(text: str) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    return simple_parse_args_string(text)


def _settings(flags: list[str], model_args: str) -> Any:
    """lm_eval's own reading of its flags."""
    import argparse

    from lm_eval._cli.run import Run
    from lm_eval.config.evaluate_config import EvaluatorConfig

    parser = argparse.ArgumentParser(prog="sae-lm-eval")
    Run.create(parser.add_subparsers())
    args = parser.parse_args(["run", "--model", "sae_hf", "--model_args", model_args, *flags])
    settings = EvaluatorConfig.from_cli(args)
    if settings.wandb_args or settings.trackio_args:
        raise UserError("run does not log to W&B or Trackio: log the results folders afterwards.")
    return settings
