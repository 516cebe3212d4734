"""What a user chooses for a conversation, checked before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae_lm_eval.errors import UserError

FORMATS = ("chat", "plain")  # of a prompt


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 takes the likeliest token. Columns of one `seed` are given the same noise."""

    temperature: float = 0.0
    seed: int = 0
    max_new_tokens: int = 128


def temperature_of(text: str | float) -> float:
    """A finite number of at least 0. Raises `UserError` otherwise."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise UserError(f"A temperature is a number of at least 0, and '{text}' is not.")
    return value


def check_writable(path: Path) -> None:
    """Before anything is run. Raises `UserError` where no file can be written at `path`."""
    try:
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}. Name another file.") from error
