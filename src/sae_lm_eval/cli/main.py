"""The command `sae-lm-eval`. Heavy imports are inside the commands, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from sae_lm_eval.cli.compare import compare_command
from sae_lm_eval.cli.curve import curve
from sae_lm_eval.cli.demo import demo
from sae_lm_eval.cli.doctor import doctor
from sae_lm_eval.cli.effective_compute import effective_compute_command
from sae_lm_eval.cli.export import export_command
from sae_lm_eval.cli.inspect import inspect
from sae_lm_eval.cli.leaderboard import leaderboard_command
from sae_lm_eval.cli.lm_eval_flags import RunCommand
from sae_lm_eval.cli.report import report
from sae_lm_eval.cli.run import LM_EVAL_FLAGS, run_command
from sae_lm_eval.cli.table import table_command
from sae_lm_eval.cli.talk import talk
from sae_lm_eval.cli.where import where_command
from sae_lm_eval.errors import UserError
from sae_lm_eval.runtime.host_memory import TOLD, is_out_of_memory

# --ce_baseline is --ce-baseline, for lm_eval's flags have underscores.
HELP = {"help_option_names": ["--help", "-h"]}
EITHER_SPELLING = {"token_normalize_func": lambda name: name.replace("_", "-")}
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in boxes takes as long to import as all the rest
    context_settings=HELP,
)


app.command("effective-compute", context_settings=EITHER_SPELLING)(effective_compute_command)
app.command("curve", context_settings={**EITHER_SPELLING, **LM_EVAL_FLAGS})(curve)
app.command("compare")(compare_command)
app.command("report")(report)
app.command("table")(table_command)
app.command("export")(export_command)
app.command("leaderboard")(leaderboard_command)
app.command("run", context_settings=LM_EVAL_FLAGS, cls=RunCommand)(run_command)
app.command("where", context_settings=LM_EVAL_FLAGS)(where_command)
app.command("talk")(talk)
app.command("inspect")(inspect)
app.command("demo")(demo)
app.command("doctor")(doctor)


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"sae-lm-eval {version('sae-lm-eval')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Evaluate language models with sparse autoencoders spliced in."""


def main() -> None:
    """Run the command; a user's mistake is told in a sentence, with exit code 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        _leave(error)
    except Exception as error:
        if is_out_of_memory(error):
            _leave(TOLD)
        if not isinstance(error, OSError) or error.filename is None:
            raise
        _leave(UserError(f"'{error.filename}' cannot be read or written: {error.strerror or error}."))


def _leave(sentence: UserError | str) -> NoReturn:
    print(f"sae-lm-eval: {sentence}", file=sys.stderr)
    raise SystemExit(2)
