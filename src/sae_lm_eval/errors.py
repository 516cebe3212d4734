"""The one exception that a user's mistake raises, and how it suggests what was meant."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from sae_lm_eval.files.escaping import printable

LONGEST = 2400  # letters of an error


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what, where and what would work.

    It is one line. What a file of somebody else's puts into it moves no cursor, changes no colour or direction, and
    does not bury what is said.
    """

    def __str__(self) -> str:
        said = printable(" ".join(super().__str__().split("\n")))
        return said if len(said) <= LONGEST else f"{said[: LONGEST // 2]} ... {said[-LONGEST // 4 :]}"


def did_you_mean(word: str, choices: Iterable[str], *, most: int = 3) -> str:
    """The nearest of `choices` to `word` as the end of a sentence, or "" when nothing is near."""
    folded = {choice.casefold(): choice for choice in choices}
    near = [word.casefold()] if word.casefold() in folded else []
    near = near or difflib.get_close_matches(word.casefold(), folded, n=most, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(folded[name]) for name in near)}?" if near else ""


def one_of(word: str, choices: Iterable[str], what: str) -> str:
    """Return `word` if it is known; raise a `UserError` that names the choices otherwise."""
    choices, word = list(choices), str(word)
    if word not in choices:
        raise UserError(f"{what} '{word}' is unknown.{did_you_mean(word, choices)} Choose from {', '.join(choices)}.")
    return word


def first_line(error: BaseException) -> str:
    """What `error` says, without what libraries add on further lines."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shortened(prompt: str, most: int = 60) -> str:
    """The end of a prompt on one line and in quotes, as a sentence names it."""
    prompt = " ".join(prompt.split())
    return repr(prompt if len(prompt) <= most else f"...{prompt[-most:]}")


def error_sentence(error: BaseException) -> str:
    """A `UserError`'s sentence; of any other its kind and its first line."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def explain_without_traceback(*programs: str) -> None:
    """Let the commands `programs` tell a `UserError` in a sentence; other programs see the exception as it is.

    A command is told by what was started, or by its own `__main__` among the modules that the exception came through:
    launchers and notebooks call it as a function.
    """
    otherwise = sys.excepthook

    def hook(kind, error, trace):
        if issubclass(kind, UserError) and (_was_started(programs) or _came_through(programs, trace)):
            print(f"sae_hf: {error}", file=sys.stderr)
        else:
            otherwise(kind, error, trace)

    sys.excepthook = hook


def _was_started(programs: tuple[str, ...]) -> bool:
    main = sys.modules["__main__"]
    module = getattr(getattr(main, "__spec__", None), "name", None) or ""
    script = Path(getattr(main, "__file__", None) or "").stem
    return script in programs or module.removesuffix(".__main__") in programs


def _came_through(programs: tuple[str, ...], trace: TracebackType | None) -> bool:
    modules = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(trace)}
    return not modules.isdisjoint(f"{program}.__main__" for program in programs)
