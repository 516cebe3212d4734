"""A report with scores of its dictionaries: a table of correlations, one of all values, figures, and a CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.exchange.rank_correlation import DRAWS, LEVEL, SEED, RankCorrelation
from sae_lm_eval.exchange.score_join import CostAxis, Joined, JoinedScore, axes_of, join_scores
from sae_lm_eval.exchange.scores import ScoreSet
from sae_lm_eval.report.assemble import Report, shape
from sae_lm_eval.report.figures import COLOURS, INK, MARKERS, NARROW, STYLE, WIDTH, Picture, logarithmic
from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    ReportTable,
    TableColumn,
    fixed_decimals,
    listing,
    number_cell,
    significant,
    text_cell,
)
from sae_lm_eval.report.sweep_figures import name_points
from sae_lm_eval.report.sweep_settings import settings

MOST_PICTURES = 16
LARGEST_DRAWN = 1e100  # beyond which the axes of a figure overflow


def with_scores(report: Report, comparison: Comparison, scores: ScoreSet) -> Report:
    """The report with the scores joined to its variants.

    L0 and effective compute are those of the first text on which fidelity was measured. Raises `UserError` where no
    score can be joined.
    """
    shaped = shape(comparison)
    text, chosen = next(iter(settings(shaped.comparison.variants, shaped.rows, shaped.fidelity).items()), (None, ()))
    joined = join_scores(scores, chosen)
    axes = axes_of(joined.scores)
    tables = [correlation_table(joined.scores, axes, text), value_table(joined.scores, axes, text)]
    first_long = next((at for at, table in enumerate(report.tables) if table.extent == "long"), len(report.tables))
    notes = list(joined.notes)
    huge = [score for score in joined.scores if any(abs(variant.score) > LARGEST_DRAWN for variant in score.scored)]
    drawn = [score for score in joined.scores if score not in huge and any(len(score.on(axis)) > 1 for axis in axes)]
    notes += [f"{score.kind.title} has values too large to be drawn; the tables have them." for score in huge]
    if len(drawn) > MOST_PICTURES:
        notes.append(f"Of {len(drawn)} scores the first {MOST_PICTURES} are drawn; the tables have them all.")
    return replace(
        report,
        tables=(*report.tables[:first_long], *tables, *report.tables[first_long:]),
        pictures=(*report.pictures, *(_picture(at, score, axes) for at, score in enumerate(drawn[:MOST_PICTURES], 1))),
        notes=(*report.notes, *notes),
        scores=scores_frame(joined, {short: name for name, short in shaped.names.items()}),
    )


def correlation_table(joined: Sequence[JoinedScore], axes: Sequence[CostAxis], text: str | None) -> ReportTable:
    """A row for each score: Spearman's correlation with each axis, and its interval below that."""
    rows = []
    for score in joined:
        correlations = [score.correlation(axis) for axis in axes]
        why = _reasons(axes, correlations)
        rows.append(
            (
                *map(text_cell, (score.kind.name, score.kind.origin, score.kind.better)),
                number_cell(len(score.scored), f"{len(score.scored):,}"),
                *(_correlation_cell(correlation, len(score.scored)) for correlation in correlations),
                text_cell("; ".join(why)),
            )
        )
    has_notes = any(row[-1].text for row in rows)
    columns = (
        *(TableColumn(head, "left") for head in ("score", "from", "better")),
        TableColumn("dictionaries"),
        *(TableColumn(f"with {axis.heading}") for axis in axes),
        *([TableColumn("notes", "left", spare=1)] if has_notes else []),
    )
    caption = (
        "Spearman's rank correlation of each score with what the same dictionaries cost, each as it is measured, "
        f"whichever way is better.{_measured_on(axes, text)}"
    )
    if any(cell.detail.startswith("[") for row in rows for cell in row):
        caption += (
            f" Below it is its {LEVEL:.0%} interval by the bootstrap over dictionaries ({DRAWS:,} draws, seed {SEED}): "
            "it covers which dictionaries were taken from others like them. It does not cover the errors of the scores "
            "and the costs themselves, and nothing is adjusted for the number of rows."
        )
    kept = [row if has_notes else row[:-1] for row in rows]
    return ReportTable("score-correlations", "Scores against costs", caption, columns, tuple(kept))


def _reasons(axes: Sequence[CostAxis], correlations: Sequence[RankCorrelation]) -> list[str]:
    """Why numbers are missing, each reason once."""
    reasons: dict[str, list[str]] = {}
    for axis, correlation in zip(axes, correlations, strict=True):
        if correlation.reason:
            reasons.setdefault(correlation.reason, []).append(axis.heading)
    return [
        reason if len(headings) == len(axes) else f"{listing(headings)}: {reason}"
        for reason, headings in reasons.items()
    ]


def _measured_on(axes: Sequence[CostAxis], text: str | None) -> str:
    headings = [axis.heading for axis in axes if axis.heading != "drop"]
    return f" {listing(headings)} on {text}.".replace(" effective", " Effective", 1) if headings and text else ""


def _correlation_cell(correlation: RankCorrelation, scored: int) -> Cell:
    """Below the correlation stand its interval, and how many dictionaries have that cost where some lack it."""
    if correlation.rho is None:
        return Cell(NA)
    bounds = (
        ""
        if correlation.low is None
        else f"[{fixed_decimals(correlation.low, 2)}, {fixed_decimals(correlation.high, 2)}]"
    )
    count = "" if correlation.n == scored else f"n = {correlation.n}"
    return number_cell(correlation.rho, fixed_decimals(correlation.rho, 2), ", ".join(filter(None, (bounds, count))))


def value_table(joined: Sequence[JoinedScore], axes: Sequence[CostAxis], text: str | None) -> ReportTable:
    """A row for each score and variant, with the axes on whose frontier it stands."""
    rows, blocks = [], []
    for score in joined:
        blocks.append(len(rows))
        fronts = {axis.heading: {variant.setting.name for variant, _ in score.frontier(axis)} for axis in axes}
        for variant in score.scored:
            on = [heading for heading, names in fronts.items() if variant.setting.name in names]
            values = [axis.value(variant.setting) for axis in axes]
            rows.append(
                (
                    text_cell(score.kind.title),
                    text_cell(variant.setting.name),
                    number_cell(variant.score, significant(variant.score, 4)),
                    *(number_cell(value, significant(value)) for value in values),
                    text_cell(", ".join(on)),
                )
            )
    columns = (
        TableColumn("score", "left"),
        TableColumn("variant", "left"),
        TableColumn("value"),
        *(TableColumn(axis.heading) for axis in axes),
        TableColumn("frontier", "left"),
    )
    caption = (
        "Each score with what the same dictionary costs. Frontier: no other dictionary is at least as good by the "
        f"score and by that cost, and better by one.{_measured_on(axes, text)}"
    )
    return ReportTable(
        "score-values", "Scores of each dictionary", caption, columns, tuple(rows), "long", tuple(blocks[1:])
    )


def scores_frame(joined: Joined, names: Mapping[str, str]) -> pd.DataFrame:
    """A row for each score and variant, unrounded, with the file that the score stands in.

    `names` leads from the variants' names in the tables to those of their results.
    """
    axes = axes_of(joined.scores)
    records = [
        {
            "score": score.kind.name,
            "origin": score.kind.origin,
            "higher_is_better": score.kind.higher_is_better,
            "variant": names[variant.setting.name],
            "dictionary": variant.setting.dictionary,
            "value": variant.score,
            **{axis.heading.replace(" ", "_"): axis.value(variant.setting) for axis in axes},
            "file": variant.file,
        }
        for score in joined.scores
        for variant in score.scored
    ]
    return pd.DataFrame(records)


def _picture(number: int, score: JoinedScore, axes: Sequence[CostAxis]) -> Picture:
    shown = [axis for axis in axes if len(score.on(axis)) > 1]
    better = score.kind.better.replace("taken to be ", "") + (" is taken to be" if score.kind.is_assumed else " is")
    caption = (
        f"A point for each dictionary; {better} better by this score. The line is the frontier: no other dictionary "
        "is at least as good by both numbers, and better by one. Bars, where there are any: 95% intervals."
    )
    best = (max if score.kind.higher_is_better else min)(score.scored, key=lambda variant: variant.score)
    alternative = (
        f"A panel for {listing(axis.heading for axis in shown)}. Best score: {significant(best.score)} of "
        f"{best.setting.name}. All numbers are in the tables."
    )
    return Picture(f"score-{number}", score.kind.title, caption, alternative, score_figure(score, shown))


def score_figure(score: JoinedScore, axes: Sequence[CostAxis]) -> Figure:
    """The score against each axis, side by side, with its frontier as a step."""
    with mpl.rc_context(STYLE):
        figure = Figure((NARROW if len(axes) == 1 else WIDTH, 2.7))
        panels = figure.subplots(1, len(axes), squeeze=False, sharey=True)[0]
        for panel, axis in zip(panels, axes, strict=True):
            _draw(panel, score, axis)
        panels[0].set_ylabel(score.kind.name)
    return figure


def _draw(panel: Axes, score: JoinedScore, axis: CostAxis) -> None:
    points = score.on(axis)
    for variant, value in points:
        low, high = axis.bounds(variant.setting)
        reach = None if low is None or high is None else [[max(value - low, 0)], [max(high - value, 0)]]
        look: dict[str, Any] = {"fmt": MARKERS[0], "color": COLOURS[0]}
        panel.errorbar([value], [variant.score], xerr=reach, **look)
    steps = [(value, variant.score) for variant, value in score.frontier(axis)]
    panel.step(*zip(*steps, strict=True), where="post", color=INK, linewidth=0.7, zorder=1)
    name_points(panel, [(variant.setting.name, value, variant.score) for variant, value in points])
    if axis.logarithmic:
        panel.set_xscale("log")
        logarithmic(panel.xaxis, [value for _, value in points])
    panel.set_xlabel(f"{axis.heading} ({axis.unit})")
    panel.margins(x=0.15, y=0.12)
    panel.grid()
