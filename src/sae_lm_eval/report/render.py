"""A report as HTML, BibTeX and Markdown. Every value is escaped for its format unless it is marked otherwise."""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from sae_lm_eval.files.escaping import printable
from sae_lm_eval.report import references
from sae_lm_eval.report.assemble import Report
from sae_lm_eval.report.figures import GREYS, INK, NARROW, RULE, Picture, as_bytes
from sae_lm_eval.report.formatting import Cell, ReportTable
from sae_lm_eval.report.prose import CITED
from sae_lm_eval.report.worst_documents import CAPTION

# Pixels of the page for a point of a figure: letters of 8 points are nearly as large as the page's.
ENLARGED = 1.75
LOADER = PackageLoader("sae_lm_eval", "report/templates")


class Verbatim(str):
    """Markdown that is inserted as it is."""


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


def script_digest(script: str) -> str:
    """The SHA-256 by which a page's content security policy lets this script run, in base64."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def html(report: Report) -> str:
    """One page that needs nothing else: its style, script and figures are in it."""
    environment = _page_environment()
    script, style = (LOADER.get_source(environment, f"report.{kind}")[0] for kind in ("js", "css"))
    digest = script_digest(script)

    def cite(text: str) -> Markup:
        link = Markup('<a href="#ref-{1}">[{0}]</a>')
        return Markup("").join(citing(printable(text), report.works, escape, link.format))

    environment.filters |= {"cite": cite, "svg": inline_svg}
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
    module: Any = _page_environment().get_template("table.html").module
    return str(module.table(table))


def _page_environment() -> Environment:
    """Texts in it are escaped, and their control characters and marks of direction are named."""
    environment = Environment(
        loader=LOADER, autoescape=True, finalize=_shown, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["breakable"] = breakable
    return environment


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def breakable(text: str) -> Markup:
    """Text for a cell: long names break before the letters that follow a separator, and nothing breaks elsewhere."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/#+.=])(?=[^\W\d])", printable(text)))


def inline_svg(picture: Picture) -> Markup:
    """The figure for the page: a name and a description of its own, ids that are its own, ink of the page's colour."""
    svg = as_bytes(picture.figure, "svg").decode()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    svg = svg.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    for number, grey in enumerate(GREYS, 1):
        svg = svg.replace(grey, f"var(--grey-{number})")
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
        printable(picture.title),
        description,
        printable(picture.alternative),
    )
    return head + Markup(svg[svg.index(">") + 1 :])


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
        *(list(map(_cell_markdown, row)) for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell_markdown(cell: Cell) -> str:
    text = f"[{render_markdown(cell.text)}]({cell.link})" if cell.link else render_markdown(cell.text)
    return f"{text} {render_markdown(cell.detail)}".strip()
