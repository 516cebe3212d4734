"""Numbers as a reader sees them, and tables of them that every format shares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

NA = "n/a"
# Names of variants with more letters lose what all of them begin with.
LONG_NAME = 16
MOST_IN_FIGURE = 34
# Of the characters that cannot be seen, those that text is made with.
SPARE_IN_PRINT = 4
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class TableColumn:
    """Where a terminal has no room, columns go whose `spare` is above 0: the highest first, of equals the right one.

    Those of `SPARE_IN_PRINT` go from a printed table too.
    """

    heading: str
    align: Literal["left", "right"] = "right"
    spare: int = 0


@dataclass(frozen=True)
class Cell:
    """What is shown, what the column is sorted by (None: undefined, sorted last), what stands below that, and where a
    link leads in the formats that have links.
    """

    text: str
    value: float | str | None = None
    detail: str = ""
    link: str | None = None


@dataclass(frozen=True)
class ReportTable:
    """`name` is of ASCII letters and dashes; a `long` table is folded up on the page and may span pages in print.

    Rows at the indices `blocks` begin something new, and are set apart.
    """

    name: str
    title: str
    caption: str
    columns: tuple[TableColumn, ...]
    rows: tuple[tuple[Cell, ...], ...]
    extent: Literal["short", "long"] = "short"
    blocks: tuple[int, ...] = ()


def is_number(value: Any) -> bool:
    """Whether `value` is a defined number: neither None, nor NaN, nor lm_eval's "N/A"."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def fixed_decimals(value: Any, digits: int = 1) -> str:
    """A number with `digits` decimals and a true minus sign, or n/a."""
    if not is_number(value):
        return NA
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def significant(value: Any, digits: int = 3) -> str:
    """A number with `digits` significant digits, or n/a."""
    if not is_number(value):
        return NA
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    decimals = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return fixed_decimals(value, decimals)


def probability(p: Any) -> str:
    """A p-value as papers print it."""
    if not is_number(p):
        return NA
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def percent(value: Any) -> str:
    """A fraction in percent, for a column whose heading has the sign."""
    return fixed_decimals(100 * value) if is_number(value) else NA


def share(value: Any, digits: int = 1) -> str:
    """A fraction with its percent sign, or n/a; above 0 never shown as 0."""
    if not is_number(value):
        return NA
    least = 10**-digits
    return f"<{least:g}%" if 0 < 100 * value < least else f"{fixed_decimals(100 * value, digits)}%"


def nats(value: Any) -> str:
    """A KL to a thousandth of a nat, with three figures from 0.1 on; above 0 never shown as 0."""
    if not is_number(value):
        return NA
    return "0" if value == 0 else "<0.001" if value < 0.001 else f"{value:.3g}" if value >= 0.1 else f"{value:.3f}"


def general(value: Any, digits: int = 6) -> str:
    """A number with at most `digits` significant digits, n/a for None, and anything else as it is."""
    if value is None:
        return NA
    return f"{value:.{digits}g}" if isinstance(value, int | float) else str(value)


def interval_text(low: Any, high: Any, shown: Callable[[Any], str] = fixed_decimals) -> str:
    """`1.2 to 3.4`, each end as `shown` has it; n/a where one is undefined."""
    return f"{shown(low)} to {shown(high)}" if is_number(low) and is_number(high) else NA


def span(values: Iterable[Any], what: str = "{}", unknown: str | None = None) -> str:
    """One value where all agree, otherwise the least and the most of them; `unknown` or n/a where none is defined."""
    defined = sorted({value for value in values if is_number(value)})
    if not defined:
        return what.format(NA) if unknown is None else unknown
    ends = [f"{int(value):,}" if value == int(value) else f"{value:g}" for value in defined]
    return what.format(ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}")


def questions_a_row(rows: Sequence[Any]) -> str:
    """`n = 40 questions per row, 5 shots`, the shots where they are known."""
    shots = span((row.shots for row in rows), ", {} shots", unknown="")
    return f"n = {span(row.n for row in rows)} questions per row{shots}"


def text_cell(text: Any) -> Cell:
    return Cell(str(text), str(text))


def number_cell(value: Any, text: str, detail: str = "") -> Cell:
    return Cell(text, float(value) if is_number(value) else None, detail)


def listing(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def distinct_texts(column: Iterable[Any]) -> list[str]:
    """The texts in a column of a frame, each once, in their order."""
    return [text for text in dict.fromkeys(column) if isinstance(text, str)]


def alternatives(column: Iterable[Any]) -> str:
    """The texts in a column of a frame, which may hold commas themselves; n/a where it has none."""
    return "; ".join(distinct_texts(column)) or NA


def abridged(text: str, most: int) -> str:
    """Text of at most about `most` letters, less its middle."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-(most // 2) :]}"


def ascii_slug(text: str) -> str:
    """A name with a dash for each character that is neither an ASCII letter nor a digit."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)


def distinct_slugs(names: Iterable[str]) -> dict[str, str]:
    """The slug of each name, with a number behind those that others have, whatever the case of their letters."""
    slugs: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        slug = plain = ascii_slug(name)
        number = 1
        while slug.lower() in taken:
            number += 1
            slug = f"{plain}-{number}"
        taken.add(slug.lower())
        slugs[name] = slug
    return slugs


def without_shared_start(names: Sequence[str]) -> dict[str, str]:
    """Long names less what they all begin with; each then still begins with a letter. Short names stay."""
    cut = 0
    if len(names) > 1 and max(map(len, names)) > LONG_NAME:
        for at in range(1, min(map(len, names))):
            if len({name[:at] for name in names}) > 1:
                break
            if names[0][at - 1] in "-_./#+ " and all(name[at].isalpha() for name in names):
                cut = at
    return {name: name[cut:] for name in names}


def fitting(names: Iterable[str]) -> dict[str, str]:
    """Names as a figure has room for them: long ones without their middle, numbered where two would look alike."""
    half = MOST_IN_FIGURE // 2
    short: dict[str, str] = {}
    alike: Counter[str] = Counter()
    for name in dict.fromkeys(names):
        cut = name if len(name) <= MOST_IN_FIGURE else f"{name[:half]}…{name[-half:]}"
        alike[cut] += 1
        short[name] = cut if alike[cut] == 1 else f"{cut} ({alike[cut]})"
    return short
