"""A comparison as a notebook shows it: its sentences and tables, and the report of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sae_lm_eval.comparison import compare as comparing
from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.files.escaping import printable, terminal
from sae_lm_eval.files.reading import at_home
from sae_lm_eval.report import assemble, render, writer
from sae_lm_eval.report.fidelity_tables import fidelity_of, tidy
from sae_lm_eval.report.headline import headline
from sae_lm_eval.report.provenance import requested_model
from sae_lm_eval.report.summary_table import summary_frame, summary_table
from sae_lm_eval.results.find import told_apart
from sae_lm_eval.results.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Findings(Comparison):
    """A `Comparison` that shows itself in a notebook, and makes its table, figures and report."""

    def __repr__(self) -> str:
        names, count = ", ".join(run.name for run in self.variants), len(self.variants)
        compared = f"{count} variant{'s' if count > 1 else ''} of {requested_model(self.baseline)}, compared: {names}"
        return f"<{terminal(compared)}>"

    def _repr_html_(self) -> str:
        from markupsafe import escape

        shaped = assemble.shape(self)
        summary = shaped.summary()
        sentences = "".join(
            f"<p>{escape(printable(sentence))}</p>" for sentence in headline(shaped.comparison, summary)
        )
        return f"{sentences}{render.table_html(summary_table(summary, shaped.significance))}"

    @property
    def fidelity(self) -> pd.DataFrame:
        """What the `sae_fidelity` tasks measured: a row for each variant, task and metric, with its standard error."""
        return tidy(fidelity_of(self.variants))

    def table(self, by: str | None = None, *, sort: str = "task") -> pd.DataFrame:
        """The one table, unrounded: variants in rows, drops (pp) with bounds and adjusted p by column.

        `by` and `sort` are those of the command `table`.
        """
        return summary_frame(assemble.shape(self, sort).summary(by))

    def plot(self, name: str = "drop-by-category") -> Figure:
        """A figure of the report. Raises `UserError`, which names them, where there is none of that name."""
        figures = {picture.name: picture.figure for picture in assemble.build(self).pictures}
        if not figures:
            raise UserError("There is nothing to draw: no task is right or wrong.")
        return figures[one_of(name, tuple(figures), "name")]

    def report(self, path: str | Path) -> Path:
        """Write the report into the folder `path`; returns its page."""
        folder = at_home(path)
        writer.write(assemble.build(self), folder)
        return folder / "report.html"


def findings(comparison: Comparison) -> Findings:
    return Findings(**{field.name: getattr(comparison, field.name) for field in fields(comparison)})


def compare(
    baseline: Results | str | Path,
    variants: Results | str | Path | Sequence[Results | str | Path],
    **options: Any,
) -> Findings:
    """`paired_comparison`, with its options; the report of it holds the fidelity that was measured besides."""
    runs = told_apart(comparing.results_of(baseline, variants))
    comparison = comparing.paired_comparison(runs[0], runs[1:], **options)
    return findings(replace(comparison, baseline=runs[0], variants=tuple(runs[1:])))
