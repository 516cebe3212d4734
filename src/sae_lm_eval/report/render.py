"""A report as HTML, LaTeX, BibTeX and Markdown. Every value is escaped for its format unless it is marked otherwise."""

from __future__ import annotations

import base64
import hashlib
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from sae_lm_eval.files.escaping import printable
from sae_lm_eval.report import references
from sae_lm_eval.report.assemble import Report
from sae_lm_eval.report.figures import INK, NARROW, RULE, Picture, as_bytes
from sae_lm_eval.report.formatting import MINUS, ReportTable
from sae_lm_eval.report.prose import CITED
from sae_lm_eval.report.worst_documents import CAPTION

# Pixels of the page for a point of a figure: letters of 8 points are nearly as large as the page's.
ENLARGED = 1.75
# A column of text with more letters than these wraps in print.
MOST_LETTERS = 24
# Letters on a line of print, in the size of a table that spans pages and of one that does not.
LETTERS_A_LINE = {"long": 125, "short": 120}
LOADER = PackageLoader("sae_lm_eval", "report/templates")
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
    "±": r"\ensuremath{\pm}",
    "\N{DAGGER}": r"\dag{}",
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


class Verbatim(str):
    """Markdown that is inserted as it is."""


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


def render_markdown(value: Any) -> str:
    """Text as Markdown, also inside a table's cell."""
    if isinstance(value, Verbatim):
        return value
    return re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", one_line(value))


def one_line(value: Any) -> str:
    """Composed letters, without line breaks and control characters."""
    text = unicodedata.normalize("NFC", re.sub(r"\s+", " ", str(value)))
    return "".join(character for character in text if unicodedata.category(character)[0] != "C")


def citing(
    text: str, works: Sequence[str], plain: Callable[[str], str], cite: Callable[[int, str], str]
) -> Iterable[str]:
    """The pieces of `text`, what stands between works by `plain` and each [@key] by `cite` (its number and key)."""
    for index, piece in enumerate(CITED.split(text)):
        yield cite(works.index(piece) + 1, piece) if index % 2 else plain(piece)


def html(report: Report) -> str:
    """One page that needs nothing else: its style, script and figures are in it."""
    environment = Environment(loader=LOADER, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    script, style = (LOADER.get_source(environment, f"report.{kind}")[0] for kind in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    def cite(text: str) -> Markup:
        link = Markup('<a href="#ref-{1}">[{0}]</a>')
        return Markup("").join(citing(text, report.works, escape, link.format))

    environment.filters |= {"cite": cite, "svg": inline_svg, "breakable": breakable}
    return environment.get_template("report.html").render(
        report=report,
        references=references,
        worst_caption=CAPTION,
        script=Markup(script),
        style=Markup(style),
        digest=digest,
    )


def table_html(table: ReportTable) -> str:
    """A table as the page has it, without style and script."""
    environment = Environment(loader=LOADER, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["breakable"] = breakable
    module: Any = environment.get_template("table.html").module
    return str(module.table(table))


def breakable(text: str) -> Markup:
    """Text for a cell: long names break before the letters that follow a separator, and nothing breaks elsewhere."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/#+.=])(?=[^\W\d])", text))


def inline_svg(picture: Picture) -> Markup:
    """The figure for the page: a name and a description of its own, ids that are its own, ink of the page's colour."""
    svg = as_bytes(picture.figure, "svg").decode()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    svg = svg.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    title, description = f"{picture.name}-title", f"{picture.name}-description"
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {} {}" '
        'width="{:.0f}" class="{}" role="img" aria-labelledby="{}" aria-describedby="{}"><title id="{}">{}</title>'
        '<desc id="{}">{}</desc>'
    ).format(
        width,
        height,
        ENLARGED * width,
        "wide" if width > 72 * NARROW + 1 else "narrow",
        title,
        description,
        title,
        picture.title,
        description,
        picture.alternative,
    )
    return head + Markup(svg[svg.index(">") + 1 :])


def latex(report: Report) -> str:
    """The appendix: a document by itself, or the body of one when another file reads it with \\input."""
    environment = _tex_environment()
    environment.filters["cite"] = lambda text: Tex(
        "".join(citing(text, report.works, tex, lambda _, key: f"\\cite{{{key}}}"))
    )
    return environment.get_template("appendix.tex").render(report=report)


def table_latex(table: ReportTable) -> str:
    """One table as a float, for a paper that loads `array`, `booktabs` and `graphicx`."""
    made = _tex_environment().get_template("table.tex").render(table=table)
    return f"{FIT}\n{made}"


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


def _tex_columns(table: ReportTable) -> Tex:
    """The column specification: numbers to the right; long text wraps in the room that is left."""
    widths = [
        max(width, *map(len, lines), 1) for width, lines in zip(_widths(table), _heading_lines(table), strict=True)
    ]
    wrapped = [
        column.align == "left" and width > MOST_LETTERS for column, width in zip(table.columns, widths, strict=True)
    ]
    taken = sum(2 + (0 if wraps else width) for wraps, width in zip(wrapped, widths, strict=True))
    room = max(12, (LETTERS_A_LINE[table.extent] - taken) // max(1, sum(wrapped)))
    kinds = [
        rf">{{\raggedright\arraybackslash}}p{{{0.5 * min(width, room):g}em}}" if wraps else column.align[0]
        for column, wraps, width in zip(table.columns, wrapped, widths, strict=True)
    ]
    return Tex(f"@{{}}{''.join(kinds)}@{{}}")


def bibtex(report: Report) -> str:
    """The works cited."""
    return "\n\n".join(map(references.entry, report.works)) + "\n"


def markdown_report(report: Report) -> str:
    """For a repository or a chat: the tables, the figures as links to their PNG."""
    environment = Environment(
        loader=LOADER, finalize=render_markdown, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def cite(text: str) -> Verbatim:
        return Verbatim("".join(citing(text, report.works, render_markdown, lambda number, _: f"[{number}]")))

    environment.filters |= {
        "cite": cite,
        "grid": lambda table: Verbatim(table_markdown(table)),
        "block": lambda parts: Verbatim("    " + _indented(_with_remarks(parts))),
        "code": lambda text: Verbatim(_indented(text)),
        "linked": lambda latent: Verbatim(f"[{render_markdown(latent.name)}]({latent.link})"),
    }
    return environment.get_template("report.md").render(
        report=report, references=references, worst_caption=CAPTION, bold=Verbatim("**")
    )


def _indented(text: str) -> str:
    """Indented, a line cannot leave its block; a carriage return would begin one that is not."""
    return printable(text).replace("\n", "\n    ")


def _with_remarks(parts: Sequence[str]) -> str:
    """What was asked, with the remarks on what is left out in brackets."""
    return "".join(f"[{part}]\n" if index % 2 else part for index, part in enumerate(parts))


def table_markdown(table: ReportTable) -> str:
    """One table, without its caption."""
    lines = [
        [render_markdown(column.heading) for column in table.columns],
        ["---:" if column.align == "right" else "---" for column in table.columns],
        *([render_markdown(f"{cell.text} {cell.detail}".strip()) for cell in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
