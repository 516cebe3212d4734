"""What a command says before it loads what takes seconds to load."""

from __future__ import annotations

import sys

import typer


def say_loading() -> None:
    """Say on stderr that libraries are loaded, unless they are already."""
    if "torch" not in sys.modules:
        typer.echo("Loading torch, transformers and lm_eval.", err=True)
