"""Where the spliced models fall on the curve of the original's training, category by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_lm_eval.capability.family import MEASURES, CategoryCurve
from sae_lm_eval.report.figures import (
    COLOURS,
    INK,
    MARKERS,
    MOST_VARIANTS,
    RULE,
    STYLE,
    WIDTH,
    Picture,
    legend,
    logarithmic,
)
from sae_lm_eval.report.formatting import fitting

MOST_PANELS, COLUMNS = 12, 3
SECTIONS = ("category", "group", "task")  # the first with two or more is shown


def capability_pictures(curves: Sequence[CategoryCurve], names: Mapping[str, str]) -> list[Picture]:
    """One figure with a panel for each category, or group or task; `names` lead to those of the report."""
    by_section = {section: [curve for curve in curves if curve.section == section] for section in SECTIONS}
    whole = {curve.score for curve in curves if curve.section == "overall"}  # a group of everything shows no more
    by_section = {
        section: [curve for curve in section_curves if curve.score not in whole]
        for section, section_curves in by_section.items()
    }
    chosen = next((by_section[section] for section in SECTIONS if len(by_section[section]) > 1), [*curves])
    chosen = [curve for curve in chosen if curve.knots]
    if not chosen:
        return []
    shown = sorted(chosen, key=_lost, reverse=True)[:MOST_PANELS]
    shown = [curve for curve in chosen if curve in shown]
    some = f" The {len(shown)} of {len(chosen)} that lose most." if len(shown) < len(chosen) else ""
    first = shown[0]
    caption = (
        f"Mean {first.measure} against the share of the original's training compute: grey, the models of the curve and "
        "what is read from them; in colour, each variant where the curve has its score, or at its end where it scores "
        f"less than the first model or more than the last.{some}"
    )
    alternative = "A panel for each category. All numbers are in the table of equivalent compute."
    return [
        Picture(
            "equivalent-compute",
            "Where each variant falls on the curve of training",
            caption,
            alternative,
            _figure(shown, names),
        )
    ]


def _lost(curve: CategoryCurve) -> float:
    """The largest share of the curve's rise that a variant has lost."""
    rise = curve.knots[-1][1] - curve.knots[0][1]
    return (curve.score[-1] - min(curve.variants.values())) / rise if rise else 0.0


def _figure(curves: Sequence[CategoryCurve], names: Mapping[str, str]) -> Figure:
    columns = min(COLUMNS, len(curves))
    stacked = -(-len(curves) // columns)
    variants = list(dict.fromkeys(name for curve in curves for name in curve.variants))[:MOST_VARIANTS]
    with mpl.rc_context(STYLE):
        figure = Figure((WIDTH, 0.7 + 1.35 * stacked))
        axes = figure.subplots(stacked, columns, sharex=True, squeeze=False)
        for axis, curve in zip(axes.flat, curves, strict=False):
            _panel(axis, curve, variants, names)
        for index, axis in enumerate(axes.flat):
            axis.tick_params(labelbottom=index + columns >= len(curves))
            if index >= len(curves):
                axis.set_axis_off()
        figure.supxlabel("share of the original's training compute", fontsize=8)
        is_margin = curves[0].measure == MEASURES["margin"]
        figure.supylabel("mean margin (nats)" if is_margin else "mean score", fontsize=8)
        legend(figure, axes[0, 0])
    return figure


def _panel(axis: Axes, curve: CategoryCurve, variants: Sequence[str], names: Mapping[str, str]) -> None:
    shares, scores = np.array(curve.knots).T
    axis.plot(shares, scores, color=RULE, linewidth=1.4, zorder=1)
    axis.plot(curve.share, curve.score, linestyle="", marker=".", color="#888888", markersize=4, zorder=2)
    for index, variant in enumerate(variants):
        if variant not in curve.variants:
            continue
        score = curve.variants[variant]
        # Where the curve is flat, the greatest compute with that score: what is left is at least that.
        at = float(np.exp(np.interp(score, scores, np.log(shares))))
        look: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": ""}
        axis.plot([at], [score], label=names[variant], zorder=3, **look)
        axis.plot([shares[0], at], [score, score], color=COLOURS[index], linewidth=0.5, zorder=1.5)
    axis.set_xscale("log")
    logarithmic(axis.xaxis, curve.share)
    axis.grid(axis="y")
    axis.set_title(fitting([curve.alias])[curve.alias], fontsize=7, color=INK)
