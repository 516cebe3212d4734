"""Arguments that several commands take, with one name, type and help text each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ResultsFolder = Annotated[Path, typer.Argument(help="A folder with the results of a baseline and of variants in it.")]
BaselineName = Annotated[str | None, typer.Option(help="The baseline's folder, if it cannot be recognised.")]
CategoriesFile = Annotated[
    Path | None, typer.Option(help="YAML: category -> tasks or groups, or {field: name} of the documents.")
]
DocumentsBy = Annotated[
    str | None, typer.Option("--docs_by", help="Field that groups documents which belong together, such as a passage.")
]
TaskOrder = Annotated[str, typer.Option(help="task: lm_eval's order of tasks; drop: the largest drop first.")]
