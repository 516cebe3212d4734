"""The one place where a report touches the disk."""

from __future__ import annotations

from pathlib import Path

from sae_lm_eval.files.escaping import for_spreadsheets
from sae_lm_eval.report import latex, render
from sae_lm_eval.report.assemble import Report
from sae_lm_eval.report.figures import as_bytes
from sae_lm_eval.runtime.placed_files import place_files
from sae_lm_eval.schema import VERSION

KINDS = ("pdf", "svg", "png")
PICTURES = ("drop-by-category", "heat-map", "drop-against", "l0-against", "equivalent", "where-", "score-")


def write(report: Report, folder: Path) -> list[Path]:
    """Write the report into `folder` and return the paths of what is in it.

    What else the folder holds stays. Raises `UserError` where the folder cannot be made or written.
    """
    contents = files(report)
    place_files(contents, folder, what="The report", otherwise="Give another --output_path.")
    _forget(folder / "figures", {Path(name).name for name in contents})
    return [folder / name for name in contents]


def _forget(pictures: Path, made: set[str]) -> None:
    """Remove figures of an earlier report that this one has no numbers for."""
    for path in pictures.glob("*"):
        if path.name not in made and path.suffix[1:] in KINDS and path.name.startswith(PICTURES):
            path.unlink()


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
    for name, frame in (("equivalents.csv", report.equivalents), ("scores.csv", report.scores)):
        if frame is not None:
            text[name] = for_spreadsheets(frame.assign(schema=VERSION)).to_csv(index=False)
    pictures = {
        f"figures/{picture.name}.{kind}": as_bytes(picture.figure, kind)
        for picture in report.pictures
        for kind in KINDS
    }
    return {name: content.encode() for name, content in text.items()} | pictures
