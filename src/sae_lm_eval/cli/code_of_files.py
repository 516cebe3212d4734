"""Code that a file of somebody else's would have run: asked about before anything of the file is honoured."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import terminal

RUNS_CODE = {
    "trust_remote_code": "Python code from the repository of the model or of a data set would run on this machine "
    "(--model_args trust_remote_code=True or --trust_remote_code)",
    "confirm_run_unsafe_code": "code that the model writes would run on this machine (--confirm_run_unsafe_code)",
}


def entries_of_models(of_file: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of a list of models, whose arguments count over all others."""
    listed = of_file.get("pretrained")
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def ask_about_code(
    settings: Sequence[Mapping[str, Any]], of_flags: Sequence[Mapping[str, Any]], file: Path | None
) -> None:
    """Raise `UserError` where a file would have code run that is neither asked for by a flag nor agreed to.

    `settings` has each place where it may be said, after the flags, of which one place does not take back another.
    """
    from sae_lm_eval.files.reading import shown

    for name in RUNS_CODE:
        if not any(source.get(name) for source in settings) or any(source.get(name) for source in of_flags):
            continue
        sentence = f"'{shown(file or '', 200)}' sets {name}: {RUNS_CODE[name]}"
        if not sys.stdin.isatty():
            raise UserError(f"{sentence}. Where you trust it, say so on the command line as well.")
        if not typer.confirm(f"{terminal(sentence)}. Go on?", err=True):
            raise UserError(f"{sentence}. Nothing was run.")
