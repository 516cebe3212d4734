"""lm_eval's own flags behind those of `sae-lm-eval run`: read by lm_eval's parser, refused in a sentence."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

from typer.core import TyperCommand

from sae_lm_eval.errors import UserError, did_you_mean, first_line

# lm_eval's flags that mean nothing to a command, and what to do instead.
REFUSED = {
    "model": "{0} evaluates --model sae_hf and the untouched model: leave out --model",
    "predict_only": "{0} compares scores, which --predict_only leaves out: leave it out",
    "config": "{0} takes lm_eval's settings from a sweep file: sae-lm-eval {0} FILE",
    "wandb_args": "{0} does not log to W&B: log the results folders afterwards",
    "wandb_config_args": "{0} does not log to W&B: log the results folders afterwards",
    "trackio_args": "{0} does not log to Trackio: log the results folders afterwards",
}
UNUSED = ("command", "func", "model", "log_samples", "show_config")  # samples are logged in any case
OF_RUN = ("model_args", "output_path")  # flags of lm_eval's that run has as its own


class _Parser(argparse.ArgumentParser):
    """No abbreviations, of which a later release may have two; and mistakes are a `UserError` that names `command`."""

    command = "run"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> Any:
        message = re.sub(r"invalid functools\.partial\(.*\) value", "invalid value", message)
        raise UserError(f"{message[:1].upper()}{message[1:]}. sae-lm-eval {self.command} --help lists the flags.")


def parser() -> argparse.ArgumentParser:
    """lm_eval's parser of the flags of its own `run`."""
    from lm_eval._cli.run import Run

    return Run.create(_Parser(prog="sae-lm-eval").add_subparsers())._parser


def settings_of(
    flags: Sequence[str], own: Iterable[str], command: str = "run", of_lm_eval: Sequence[str] | None = None
) -> dict[str, Any]:
    """The settings that lm_eval's parser makes of `flags`; those that are not given are left out.

    `own` are the flags that the `command` has besides, and `of_lm_eval` the settings of lm_eval's that it takes, all
    but a few if None. Raises `UserError` for a flag that neither knows, with the nearest, and for those of lm_eval's
    that the command does not take.
    """
    reader: Any = parser()
    reader.command = command
    actions = [action for action in reader._actions if of_lm_eval is None or action.dest in of_lm_eval]
    known_flags = {flag for action in actions for flag in action.option_strings}
    taken = sorted({*known_flags, *own} - {f"--{name}" for name in REFUSED})
    for flag in flags:
        name = flag.partition("=")[0]
        if name.startswith("--") and name not in known_flags:
            raise UserError(
                f"{command} has no flag '{name}'.{did_you_mean(name, taken)} 'sae-lm-eval {command} --help' lists them."
            )
    try:
        namespace, rest = reader.parse_known_args(list(flags))
    except UserError:
        raise
    except ValueError as error:  # of lm_eval's own types, which argparse lets pass
        raise UserError(f"lm_eval does not take these flags: {first_line(error)}") from error
    if rest:
        sweep = " A sweep file comes first, flags behind it." if of_lm_eval is None else ""
        raise UserError(f"{command} does not know what to do with '{rest[0]}'.{sweep}")
    given = vars(namespace)
    for name, why in REFUSED.items():
        if given.get(name) not in (None, "sae_hf"):
            raise UserError(f"{why.format(command)}.")
    if of_lm_eval is not None:
        others = given.keys() - {*of_lm_eval, *UNUSED}
        if any(given[name] != reader.get_default(name) for name in others):
            flags_taken = ", ".join(f"--{name}" for name in of_lm_eval)
            raise UserError(f"{command} takes of lm_eval's flags only {flags_taken}.")
    # What is not given is None or absent; False, 0 and "" are as good as any other value.
    return {name: value for name, value in given.items() if value is not None and name not in UNUSED}


BEHIND_HELP = """
 Required: a model (--model_args pretrained=...), --tasks, --output_path and a --sae,
 or a sweep file that says them. Its keys, which docs/sweeps.md explains:

{keys}

 Examples:

   sae-lm-eval run --model_args pretrained=world --tasks sae_world_homes --limit 50 \\
       --sae world#blocks.2.hook_resid_post.k4 --output_path out/
   sae-lm-eval run sweep.yaml --limit 50 --output_path out/

{flags}"""


class RunCommand(TyperCommand):
    """`run`, whose help goes on with what lm_eval's parser says of the flags that it passes on."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from textwrap import fill

        from sae_lm_eval.runs.sweep_keys import OURS, lm_eval_settings

        super().format_help(ctx, formatter)
        keys = ", ".join([*OURS, *lm_eval_settings()])
        formatter.write(
            BEHIND_HELP.format(keys=fill(keys, _width(), initial_indent="   ", subsequent_indent="   "), flags=_flags())
        )


def _flags() -> str:
    """lm_eval's own help of the flags that `run` takes."""
    passed = argparse.HelpFormatter("sae-lm-eval run", max_help_position=28, width=_width())
    hidden = {*REFUSED, *UNUSED, *OF_RUN, "help"}
    passed.start_section(" lm_eval's flags, which come last")
    passed.add_arguments([action for action in parser()._actions if action.dest not in hidden])
    passed.end_section()
    return passed.format_help()


def _width() -> int:
    return max(60, min(shutil.get_terminal_size().columns, 120) - 2)
