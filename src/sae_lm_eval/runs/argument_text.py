"""`name=value,name=value`, as lm_eval reads it from a command line."""

from __future__ import annotations

from typing import Any

from sae_lm_eval.errors import UserError


def named_values(text: str, where: str = "--model_args") -> dict[str, Any]:
    """The values by their names. Raises `UserError` where a name stands twice: lm_eval takes the last in silence."""
    from lm_eval.utils import simple_parse_args_string

    names = [part.partition("=")[0].strip() for part in text.split(",") if part]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where} names '{twice}' twice: give it once.")
    return simple_parse_args_string(text)
