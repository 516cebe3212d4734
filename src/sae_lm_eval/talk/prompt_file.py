"""A user's file of prompts."""

from __future__ import annotations

from pathlib import Path

from pydantic import StrictStr

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign, at_home, checked, json_value, read_text, shown


class Prompt(Foreign):
    """A line of a file of prompts."""

    prompt: StrictStr


def read_prompts(path: Path) -> list[str]:
    """One a line; of a .jsonl file the field "prompt" of each line. Blank lines are skipped.

    Raises `UserError` where the file is missing, holds none, or has a line that is not such.
    """
    path = at_home(path)
    lines = read_text(path).split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"'{path}' holds no prompt.")
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"Line {number} of '{shown(path, 200)}'") for number, line in numbered]


def _prompt_of(line: str, where: str) -> str:
    return checked(Prompt, json_value(line, where), where, 'an object with a "prompt"').prompt
