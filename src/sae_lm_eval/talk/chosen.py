"""What a user chooses for a conversation, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lm_eval.errors import UserError, one_of

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


def check_columns(specs: Sequence[str], edit: object) -> None:
    """Raise `UserError` where there is no variant, or one twice; `specs` are those of dictionaries."""
    if not specs and edit is None:
        raise UserError("Name a dictionary: sae=SPEC in --model_args, or --sae SPEC for each variant.")
    if twice := [spec for i, spec in enumerate(specs) if spec in specs[:i]]:
        raise UserError(f"{twice[0]} is given twice: each variant is a column, and no two may be the same.")


def prompt_format_of(prompt_format: str | None, model: str, *, has_template: bool) -> str:
    """How prompts are put to `model`. Raises `UserError` for what is no format, or for chat without a template."""
    if prompt_format is None:
        return "chat" if has_template else "plain"
    if one_of(prompt_format, FORMATS, "--prompt_format") == "chat" and not has_template:
        raise UserError(f"{model} has no chat template: use --prompt_format plain.")
    return prompt_format


def check_system(system: str | None, prompt_format: str, model: str) -> None:
    """Raise `UserError` where there is no chat template to put a system prompt in."""
    if system is not None and prompt_format == "plain":
        raise UserError(f"A system prompt needs a chat template, and {model} is read as plain text here.")
