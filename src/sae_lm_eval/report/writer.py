"""The one place where a report touches the disk."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import for_spreadsheets
from sae_lm_eval.report import latex, render
from sae_lm_eval.report.assemble import Report
from sae_lm_eval.report.figures import as_bytes
from sae_lm_eval.report.question_page import question_page
from sae_lm_eval.runtime.placed_files import place_files
from sae_lm_eval.schema import VERSION

OTHERWISE = "Give another --output_path."
SOMETIMES = ("equivalents.csv", "scores.csv")  # tables that not every report has
KINDS = ("pdf", "svg", "png")
PICTURES = (
    *("drop-by-category", "heat-map", "drop-against", "l0-against", "loss-against-layer", "equivalent", "where-"),
    *("score-", "parted-texts"),
)


def write(report: Report, folder: Path) -> list[Path]:
    """Write the report into `folder` and return the paths of what is in it.

    What else the folder holds stays. Raises `UserError` where the folder cannot be made or written.
    """
    contents = files(report)
    place_files(contents, folder, what="The report", otherwise=OTHERWISE)
    try:
        _forget(folder, contents)
    except OSError as error:
        raise UserError(
            f"What an earlier report left in '{folder}' cannot be removed: {error.strerror}. {OTHERWISE}"
        ) from error
    return [folder / name for name in contents]


def _forget(folder: Path, contents: Container[str]) -> None:
    """Remove figures, pages and tables of an earlier report that this one has no numbers for."""
    pictures = [
        path for path in (folder / "figures").glob("*") if path.suffix[1:] in KINDS and path.name.startswith(PICTURES)
    ]
    for path in (*pictures, *folder.glob("questions-*.html"), *(folder / name for name in SOMETIMES)):
        if path.relative_to(folder).as_posix() not in contents:
            path.unlink(missing_ok=True)


def files(report: Report) -> dict[str, bytes]:
    """The content of each file by its name within the folder."""
    text = {
        "report.html": render.html(report),
        "report.md": render.markdown_report(report),
        "appendix.tex": latex.appendix(report),
        "appendix.bib": render.bibtex(report),
        "drops.csv": for_spreadsheets(report.drops.assign(schema=VERSION)).to_csv(index=False),
        "fidelity.csv": for_spreadsheets(report.fidelity.assign(schema=VERSION)).to_csv(index=False),
    }
    text |= {page.file: question_page(page.record) for page in report.questions}
    for name, frame in zip(SOMETIMES, (report.equivalents, report.scores), strict=True):
        if frame is not None:
            text[name] = for_spreadsheets(frame.assign(schema=VERSION)).to_csv(index=False)
    pictures = {
        f"figures/{picture.name}.{kind}": as_bytes(picture.figure, kind)
        for picture in report.pictures
        for kind in KINDS
    }
    return {name: content.encode() for name, content in text.items()} | pictures
