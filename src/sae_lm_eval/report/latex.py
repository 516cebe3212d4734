"""A report as LaTeX. Every value is escaped unless it is marked otherwise."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jinja2 import Environment, StrictUndefined

from sae_lm_eval.report.assemble import Report
from sae_lm_eval.report.formatting import MINUS, SPARE_IN_PRINT, ReportTable
from sae_lm_eval.report.render import LOADER, citing, one_line

# A column of text with more letters than these wraps in print.
MOST_LETTERS = 24
# Digits on a line of print, in the size of a table that spans pages and of one that does not; and between two columns.
DIGITS_A_LINE = {"long": 114, "short": 108}
GAP = {"long": 1.4, "short": 1.8}
# Between two columns of a table that spans pages and has no room for its names otherwise.
NARROW_GAP = 1.0
# How wide a letter of Latin Modern is, in digits; others are about as wide as a digit.
LETTER_WIDTHS = {
    **dict.fromkeys(".,:;[]()'`!|/ijl", 0.58),
    **dict.fromkeys("mwMW%", 1.6),
    **dict.fromkeys("ABCDEFGHKNOPQRSTUVXYZ_", 1.4),
    **dict.fromkeys(f"{MINUS}±<>=+\N{MULTIPLICATION SIGN}", 1.6),
}
# Digits of a name's line: at least, and where there is room for them.
LEAST_NAME, GOOD_NAME = 12.0, 24.0
TEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": "'",
    "`": r"\textasciigrave{}",
    MINUS: r"\ensuremath{-}",
    "\N{EN DASH}": "--",
    "…": r"\ldots{}",
    "\N{BULLET}": r"\textbullet{}",
    "±": r"\ensuremath{\pm}",
    "\N{DAGGER}": r"\dag{}",
    "\N{DOUBLE DAGGER}": r"\ddag{}",
    "\N{DEGREE SIGN}": r"\textdegree{}",
    "\N{MULTIPLICATION SIGN}": r"\ensuremath{\times}",
    # Long names break after these.
    "_": r"\_\allowbreak{}",
    "/": r"/\allowbreak{}",
    "#": r"\#\allowbreak{}",
    "+": r"+\allowbreak{}",
    **{character: f"\\{character}" for character in "&%${}"},
}


class Tex(str):
    """LaTeX that is inserted as it is."""


def tex(value: Any) -> Tex:
    """Text as LaTeX. Letters that pdfTeX's T1 fonts lack are written as their code points."""
    if isinstance(value, Tex):
        return value
    text = one_line(value)
    # Behind the end of a row LaTeX takes a bracket or a star for its argument.
    start = "{}" if text[:1] in ("[", "*") else ""
    return Tex(start + "".join(TEX_SPECIAL.get(character) or _tex_letter(character) for character in text))


def tex_name(text: str) -> Tex:
    """Text for a column of names: its words may be hyphenated, and long ones break after whatever is no letter.

    TeX hyphenates only what stands behind glue.
    """
    parts = re.findall(r"[^\W_]+|.", one_line(text)) if len(text) > MOST_LETTERS else [text]
    return Tex("".join(rf"\hspace{{0pt}}{tex(part)}" for part in parts))


def _tex_letter(character: str) -> str:
    if character < "\x7f" or "\xc0" <= character <= "\xff":
        return character
    return rf"\texttt{{U+{ord(character):04X}}}"


def appendix(report: Report) -> str:
    """The appendix: a document by itself, or the body of one when another file reads it with \\input."""
    environment = _tex_environment()
    environment.filters["cite"] = lambda text: Tex(
        "".join(citing(text, report.works, tex, lambda _, key: f"\\cite{{{key}}}"))
    )
    return environment.get_template("appendix.tex").render(report=report)


def table_latex(table: ReportTable) -> str:
    """One table as a float, for a paper that loads `array`, `booktabs` and `graphicx`."""
    body = _tex_environment().get_template("table.tex").render(table=table)
    return f"{FIT}\n{body}"


# A table that is wider than the page is made smaller. appendix.tex has the same.
FIT = r"""\providecommand{\saelmevalfit}[1]{%
  \sbox0{#1}\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi}"""


def _tex_environment() -> Environment:
    environment = Environment(
        loader=LOADER,
        finalize=tex,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters |= {
        "printed": _printed,
        "gap": _tex_gap,
        "columns": _tex_columns,
        "headings": _tex_headings,
        "body": _tex_body,
        "ascii": Tex,  # names of our own: letters, digits and dashes
    }
    return environment


def _tex_body(table: ReportTable) -> Tex:
    """The rows; what stands below a number has a line of its own, in smaller letters."""
    lines = []
    for index, row in enumerate(table.rows):
        if index in table.blocks:
            lines.append(r"\midrule")
        named = [column.align == "left" for column in table.columns]
        cells = (tex_name(cell.text) if name else tex(cell.text) for cell, name in zip(row, named, strict=True))
        lines.append(" & ".join(cells) + r"\\")
        if any(cell.detail for cell in row):
            below = " & ".join(rf"{{\scriptsize {tex(cell.detail)}}}" if cell.detail else "" for cell in row)
            lines[-1] += "*"
            lines.append(rf"{below}\\[2pt]")
    return Tex("\n".join(lines))


def _tex_headings(table: ReportTable) -> Tex:
    """The headings, wrapped so that no column is wider for its heading than for what it holds."""
    columns = zip(table.columns, _heading_lines(table), strict=True)
    cells = (rf"\shortstack[{column.align[0]}]{{{(chr(92) * 2).join(map(tex, lines))}}}" for column, lines in columns)
    return Tex(" & ".join(cells))


def _heading_lines(table: ReportTable) -> list[list[str]]:
    lines = []
    for column, width in zip(table.columns, _widths(table), strict=True):
        words = re.sub(r"(?<=[_/])(?=\w)", " ", one_line(column.heading))  # names break there too
        longest = max(map(len, re.split(r"[\s-]", words)))
        wrapped = textwrap.wrap(words, max(width, min(longest, 12), 1))
        lines.append([re.sub(r"(?<=[_/]) ", "", line) for line in wrapped])
    return lines


def _widths(table: ReportTable) -> list[int]:
    """Letters in the longest cell of each column; what stands below is smaller."""
    return [
        max((max(len(row[index].text), int(0.8 * len(row[index].detail))) for row in table.rows), default=0)
        for index in range(len(table.columns))
    ]


def _digits(table: ReportTable) -> list[float]:
    """How wide each column is in print, in digits of the table's size."""
    out = []
    smaller = 0.9 if table.extent == "short" else 1.0  # a table that spans pages has the size of what stands below
    for index, lines in enumerate(_heading_lines(table)):
        cells = [*lines, *(row[index].text for row in table.rows)]
        below = [smaller * _in_digits(row[index].detail) for row in table.rows]
        out.append(max([1.0, *map(_in_digits, cells), *below]))
    return out


def _printed(table: ReportTable) -> ReportTable:
    """A table that spans pages cannot be made smaller: less the columns that print can spare, where it is too wide, and
    less others that a terminal would spare, while names have no room at all.
    """
    if table.extent == "short" or _room_for_names(table, GAP["long"]) >= _names(table) * GOOD_NAME:
        return table
    printed = _with_columns(table, [at for at, column in enumerate(table.columns) if column.spare < SPARE_IN_PRINT])
    while _room_for_names(printed) < _names(printed) * LEAST_NAME:
        spare, last = max((column.spare, at) for at, column in enumerate(printed.columns))
        if spare == 0:
            break
        printed = _with_columns(printed, [at for at in range(len(printed.columns)) if at != last])
    return printed


def _room_for_names(table: ReportTable, gap: float = NARROW_GAP) -> float:
    """Digits that a line has left beside the numbers of a table that spans pages."""
    numbers = sum(width for width, column in zip(_digits(table), table.columns, strict=True) if column.align == "right")
    return DIGITS_A_LINE["long"] - gap * len(table.columns) - numbers


def _names(table: ReportTable) -> int:
    return sum(column.align == "left" for column in table.columns)


def _gap(table: ReportTable) -> float:
    """Digits between two columns."""
    gap = GAP[table.extent]
    crowded = table.extent == "long" and _room_for_names(table, gap) < _names(table) * LEAST_NAME
    return NARROW_GAP if crowded else gap


def _tex_gap(table: ReportTable) -> Tex:
    """Half of the space between two columns, as LaTeX has it."""
    return Tex("4pt" if table.extent == "short" else f"{2 * _gap(table):.2g}pt")


def _with_columns(table: ReportTable, kept: Sequence[int]) -> ReportTable:
    columns, *rows = (tuple(line[at] for at in kept) for line in (table.columns, *table.rows))
    return replace(table, columns=columns, rows=tuple(rows))


def _in_digits(text: str) -> float:
    return sum(LETTER_WIDTHS.get(letter, 1.0) for letter in text)


def _tex_columns(table: ReportTable) -> Tex:
    """The column specification: numbers to the right; long text wraps in the room that is left."""
    widths, gap = _digits(table), _gap(table)
    names = [column.align == "left" for column in table.columns]
    wrapped = [name and count > MOST_LETTERS for name, count in zip(names, _widths(table), strict=True)]
    if sum(widths) + gap * len(widths) > DIGITS_A_LINE[table.extent] and not any(wrapped):
        wrapped = names
    taken = sum(gap + (0 if wraps else width) for wraps, width in zip(wrapped, widths, strict=True))
    room = max(LEAST_NAME, (DIGITS_A_LINE[table.extent] - taken) / max(1, sum(wrapped)))
    kinds = [
        rf">{{\raggedright\arraybackslash}}p{{{0.5 * min(width, room):.3g}em}}" if wraps else column.align[0]
        for column, wraps, width in zip(table.columns, wrapped, widths, strict=True)
    ]
    return Tex(f"@{{}}{''.join(kinds)}@{{}}")
