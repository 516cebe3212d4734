"""The command `sae-lm-eval`. Heavy imports are inside the commands, so that `--help` is quick."""

from __future__ import annotations

import sys

import typer

from sae_lm_eval.cli.compare import compare
from sae_lm_eval.cli.curve import curve
from sae_lm_eval.cli.demo import demo
from sae_lm_eval.cli.effective_compute import effective_compute
from sae_lm_eval.cli.inspect import inspect
from sae_lm_eval.cli.report import report
from sae_lm_eval.cli.run import LM_EVAL_FLAGS, run
from sae_lm_eval.cli.table import table
from sae_lm_eval.cli.talk import talk
from sae_lm_eval.errors import UserError

# --ce_baseline is --ce-baseline, for lm_eval's flags have underscores.
EITHER_SPELLING = {"token_normalize_func": lambda name: name.replace("_", "-")}
app = typer.Typer(
    help="Evaluate language models with sparse autoencoders spliced in.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command("effective-compute", context_settings=EITHER_SPELLING)(effective_compute)
app.command("curve", context_settings=EITHER_SPELLING)(curve)
app.command("compare")(compare)
app.command("report")(report)
app.command("table")(table)
app.command("run", context_settings=LM_EVAL_FLAGS)(run)
app.command("talk")(talk)
app.command("inspect")(inspect)
app.command("demo")(demo)


def main() -> None:
    """Run the command; a user's mistake is told in a sentence, with exit code 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"sae-lm-eval: {error}", file=sys.stderr)
        raise SystemExit(2) from None
