"""Texts of somebody else's, escaped for where they are put: a terminal, a table for spreadsheets, Markdown, LaTeX.

The page of a report escapes by its templates.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

JOINERS = "\n\t\u200c\u200d"  # letters of scripts and of emoji are joined by the last two
MOVING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # the categories of control characters and the like
FORMULA = re.compile(r"[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")  # with which spreadsheets begin a formula


def printable(text: Any) -> str:
    """Text as it is, with line breaks and tabs, but other control characters and line breaks, marks of direction and
    lone surrogates as code points.
    """
    return "".join(
        letter if letter in JOINERS or unicodedata.category(letter) not in MOVING else f"<U+{ord(letter):04X}>"
        for letter in str(text)
    )


def terminal(text: Any) -> str:
    """Text for one line of a terminal: nothing in it moves the cursor, colours, or changes the direction of writing."""
    return printable(re.sub(r"\s+", " ", str(text)))


def markup(text: Any) -> str:
    """`terminal` text in which rich finds no markup."""
    from rich.markup import escape

    return escape(terminal(text))


def for_spreadsheets(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose texts and headings no spreadsheet takes for a formula: a quote before those that begin like one."""
    import pandas as pd

    def quoted(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = printable(value)
        return f"'{text}" if FORMULA.match(text) else text

    copy = frame.copy()
    for name in copy:
        if not pd.api.types.is_numeric_dtype(copy[name].dtype):
            copy[name] = copy[name].map(quoted)
    return copy.set_axis([quoted(name) for name in copy], axis="columns")
