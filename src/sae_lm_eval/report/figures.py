"""The pictures of a report: each function returns a figure, or None where there is nothing to draw.

Sizes are those of a paper's text block (5.5 inches), letters 7 to 8 points. Series differ by colour (Okabe and Ito's
palette, safe for the colour-blind) and by marker.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sae_lm_eval.files.escaping import printable
from sae_lm_eval.report.drop_tables import DropRow, drop_variants, in_order
from sae_lm_eval.report.formatting import MINUS, MOST_IN_FIGURE, fitting, fixed_decimals, without_shared_start

WIDTH, NARROW, TALLEST = 5.5, 4.2, 7.5
# With more points than these, the variants do not stand side by side in one panel of a page's height.
MOST_POINTS = 110
# More variants than these, no colours tell apart.
MOST_VARIANTS = 6
# With more variants, the cells of a heat map are too narrow for numbers, and a scale of colours stands beside it.
MOST_NUMBERED = 9
INK, RULE = "#1b1f24", "#c9ced6"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREYS = ("#444444", "#888888", "#b0b0b0")
CHANCE = "down to chance"
MARKERS = ("o", "s", "^", "D", "v", "P")
LETTER, LEGEND_LINE = 0.058, 0.15  # width of a letter of 7 points and height of a line of them, in inches
STYLE: Any = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a name may hold dollars
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 0.9,
    "lines.markersize": 3.6,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "sae_lm_eval",
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
}
DATELESS = {"pdf": {"CreationDate": None}, "svg": {"Date": None, "Creator": None}, "png": {}}


@dataclass(frozen=True)
class Picture:
    """A figure, its caption, and what it shows for someone who does not see it."""

    name: str
    title: str
    caption: str
    alternative: str
    figure: Figure


def as_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file: pdf, svg (letters as text) or png; the same bytes each time, on a clear background."""
    buffer = io.BytesIO()
    for text in figure.findobj(Text):  # but labels of ticks, which are made anew as it is drawn
        text.set_text(printable(text.get_text()))
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in letters that no font here has
        figure.savefig(buffer, format=kind, metadata=DATELESS[kind], transparent=kind != "png")
    figure.set_layout_engine("none")  # it is laid out now; to do so for each format takes most of the time
    return buffer.getvalue()


def drop_by_category(rows: Sequence[DropRow], lines: Sequence[DropRow] = ()) -> Figure | None:
    """Drop (pp) with its interval of each category; at most six variants.

    The variants stand side by side in one panel, or each in a panel of its own where that is too high for a page.
    `lines` are controls: a stroke each, on the scale of the variants.
    """
    if not rows:
        return None
    variants, grouped = drop_variants(rows), in_order(rows)
    crowded = sum(map(len, grouped.values())) * len(variants) > MOST_POINTS
    panels = [[variant] for variant in variants] if crowded else [variants]
    places, ticks, end = _places(rows, spread=len(panels[0]))
    columns = min(len(panels), 3)
    stacked = -(-len(panels) // columns)
    pitch = min(0.15, (TALLEST / stacked - 0.3) / end)
    narrow = columns == 1 and max(len(text) for _, text, _ in ticks) < 24
    with mpl.rc_context(STYLE):
        figure = Figure((NARROW if narrow else WIDTH, max(1.6, 0.5 + (end * pitch + 0.3) * stacked)))
        axes = figure.subplots(stacked, columns, sharex=True, sharey=True, squeeze=False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            for index, variant in enumerate(panel):
                own = [row for row in rows if row.variant == variant]
                shift = (index - (len(panel) - 1) / 2) * 0.8
                heights = [places[row.name] + shift for row in own]
                points(axis, index, variant, [row.drop for row in own], heights, xerr=reach(own))
            _ruled(axis, ticks, end, small=min(7, 60 * pitch) if len(panels) > 1 else 7)
            _strokes(axis, rows, lines, places)
            if len(panels) > 1:
                axis.set_title(textwrap.fill(panel[0], 24), fontsize=6)
        for axis in list(axes.flat)[len(panels) :]:
            axis.set_axis_off()
        figure.supxlabel("drop in accuracy (percentage points)", fontsize=8)
        if len(panels[0]) > 1 or lines:
            legend(figure, axes[0, 0], last=_series(lines))
    return figure


def _strokes(axis: Axes, rows: Sequence[DropRow], lines: Sequence[DropRow], places: dict[str, float]) -> None:
    """Controls as strokes; the axis keeps to the variants, and what lies beyond is an arrow at its edge."""
    if not lines:
        return
    axis.set_xlim(
        *_widened([bound for row in rows for bound in (row.low, row.high, row.drop, 0.0) if bound is not None])
    )
    least, most = axis.get_xlim()
    for shade, (label, own) in zip(GREYS, _series(lines).items(), strict=False):
        control_rows = [row for row in own if row.name in places]
        inside = [row for row in control_rows if least <= row.drop <= most]
        look: dict[str, Any] = {"linestyle": "", "color": shade, "zorder": 1}
        stroke: dict[str, Any] = {"marker": "|", "markersize": 7, "markeredgewidth": 1.1, "label": label}
        axis.plot([row.drop for row in inside], [places[row.name] for row in inside], **stroke, **look)
        for edge, beyond, marker in (
            (least, [row for row in control_rows if row.drop < least], "<"),
            (most, [row for row in control_rows if row.drop > most], ">"),
        ):
            if not beyond:  # what is not clipped takes room in the layout, wherever it is not
                continue
            heights = [places[row.name] for row in beyond]
            axis.plot([edge] * len(beyond), heights, marker=marker, markersize=3, clip_on=False, **look)
            if marker == "<":  # room between the arrow and the labels
                axis.tick_params(axis="y", pad=8)


def _series(lines: Sequence[DropRow]) -> dict[str, list[DropRow]]:
    """Controls by their names; more than there are greys look alike, and go by their number."""
    names = drop_variants(lines)
    if len(names) > len(GREYS):
        return {f"{len(names)} controls": list(lines)}
    return {name: [row for row in lines if row.variant == name] for name in names}


def _places(rows: Sequence[DropRow], spread: int) -> tuple[dict[str, float], list[tuple[float, str, str]], float]:
    """The height of each category's row, the labels as (height, text, weight), and the height of them all."""
    labels, grouped = labels_of(rows), in_order(rows)
    step, at = max(1.0, 0.8 * spread + 0.4), 0.0
    places: dict[str, float] = {}
    ticks: list[tuple[float, str, str]] = []
    for parent, names in grouped.items():
        if len(grouped) > 1:
            ticks.append((at + 0.5, parent, "bold"))
            at += 1.1
        for name in names:
            places[name] = at + step / 2
            ticks.append((places[name], labels[name], "normal"))
            at += step
    return places, ticks, at


def reach(rows: Sequence[DropRow]) -> np.ndarray:
    """How far the interval reaches to each side of the drop; not at all where it is undefined."""
    bounds = [(row.drop, row.drop) if row.low is None or row.high is None else (row.low, row.high) for row in rows]
    return np.array([[row.drop - low, high - row.drop] for row, (low, high) in zip(rows, bounds, strict=True)]).T


def points(axis: Axes, index: int, label: str, x: Any, y: Any, **more: Any) -> None:
    axis.errorbar(x, y, fmt=MARKERS[index], color=COLOURS[index], label=label, **more)


def _ruled(axis: Axes, ticks: Sequence[tuple[float, str, str]], end: float, small: float) -> None:
    axis.set_yticks([at for at, *_ in ticks], [printable(text) for _, text, _ in ticks])
    for label, (*_, weight) in zip(axis.get_yticklabels(), ticks, strict=False):  # none inside a grid of panels
        label.set_fontweight(weight)
    axis.tick_params(axis="y", length=0, labelsize=small)
    axis.spines["left"].set_visible(False)
    axis.set_ylim(end, 0)
    axis.axvline(0, color=INK, linewidth=0.6, zorder=0.5)
    axis.grid(axis="x")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(tick_label))


def tick_label(value: float, _: int | None) -> str:
    return f"{value:g}".replace("-", MINUS)


def labels_of(rows: Sequence[DropRow]) -> dict[str, str]:
    """The label of each category, by its name, as a figure has room for it."""
    short = names_in_figure(list(dict.fromkeys(row.alias for row in rows)))
    return {row.name: short[row.alias] for row in rows}


def names_in_figure(names: Sequence[str]) -> dict[str, str]:
    """Long names less what all begin with, and less the middle of what is still long."""
    is_long = max(map(len, names), default=0) > MOST_IN_FIGURE
    endings = without_shared_start(names) if is_long else {name: name for name in names}
    short = fitting(endings.values())
    return {name: short[endings[name]] for name in names}


def heat_map(rows: Sequence[DropRow]) -> Figure | None:
    """Drop (pp) of each category in each of several variants: red is worse, blue better, white no change."""
    if len(drop_variants(rows)) < 2:
        return None
    names, variants = [name for names in in_order(rows).values() for name in names], drop_variants(rows)
    values = np.full((len(names), len(variants)), np.nan)
    for row in rows:
        values[names.index(row.name), variants.index(row.variant)] = row.drop
    most = max(1.0, float(np.nanmax(np.abs(values))))
    left, above = [labels_of(rows)[name] for name in names], list(fitting(variants).values())
    return coloured_grid(values, left, above, most, "drop (pp)")


def coloured_grid(
    values: np.ndarray, left: Sequence[str], above: Sequence[str], most: float, label: str, breaks: Sequence[int] = ()
) -> Figure:
    """Numbers on colours from -`most`, blue, to `most`, red; cells that are nan are left empty.

    A line is drawn above the rows at `breaks`. Where there are too many columns for numbers, a scale of colours with
    the `label` stands beside them, with points at its ends where numbers lie beyond them.
    """
    left, above = ([printable(name) for name in names] for names in (left, above))
    width = LETTER * max(map(len, left)) + 0.5 + 0.5 * len(above)
    height = 0.2 + 0.7 * LETTER * max(map(len, above)) + 0.2 * len(left)
    with mpl.rc_context(STYLE):
        figure = Figure((min(WIDTH, width), min(TALLEST, height)))
        axis = figure.subplots()
        edges: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.8}
        image = axis.pcolormesh(values, cmap="RdBu_r", norm=TwoSlopeNorm(0, -most, most), **edges)
        axis.invert_yaxis()
        for at in breaks:
            axis.axhline(at, color=INK, linewidth=0.6)
        axis.set_yticks(np.arange(len(left)) + 0.5, left)
        slanted: dict[str, Any] = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"}
        axis.set_xticks(np.arange(len(above)) + 0.5, above, **slanted)
        axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axis.spines[:].set_visible(False)
        if len(above) <= MOST_NUMBERED:
            _numbers(axis, values, most)
        else:
            beyond = "both" if np.nanmax(np.abs(values)) > most else "neither"
            figure.colorbar(image, ax=axis, shrink=min(1.0, 8 / len(left)), aspect=15, label=label, extend=beyond)
    return figure


def _numbers(axis: Axes, values: np.ndarray, most: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        colour = "white" if abs(value) > 0.62 * most else "black"
        middle: dict[str, Any] = {"ha": "center", "va": "center"}
        axis.text(column + 0.5, row + 0.5, fixed_decimals(value), fontsize=6.5, color=colour, **middle)


def drop_against_baseline(rows: Sequence[DropRow]) -> Figure | None:
    """Drop (pp) of each task against the untouched model's accuracy (%); at most six variants.

    A dashed line shows where everything above chance is lost, if all tasks have the same chance.
    """
    if len({row.name for row in rows}) < 2:
        return None
    variants = drop_variants(rows)
    baselines = [100 * row.baseline for row in rows]
    with mpl.rc_context(STYLE):
        figure = Figure((NARROW, 2.9))
        axis = figure.subplots()
        for index, variant in enumerate(variants):
            own = [row for row in rows if row.variant == variant]
            # Many tasks have the same baseline, 100% above all: what lies behind a point shows through it.
            fine: dict[str, Any] = {"yerr": reach(own), "elinewidth": 0.5, "alpha": 0.6}
            points(axis, index, variant, [100 * row.baseline for row in own], [row.drop for row in own], **fine)
        if (chance := one_chance(rows)) is not None:
            ends = np.array([max(100 * chance, min(baselines)), max(baselines)])
            dashed: dict[str, Any] = {"color": INK, "linewidth": 0.7, "linestyle": (0, (4, 3))}
            axis.plot(ends, ends - 100 * chance, label=CHANCE, zorder=1, **dashed)
        axis.axhline(0, color=INK, linewidth=0.6, zorder=0.5)
        axis.grid(axis="y")
        axis.set_xlabel("accuracy of the baseline (%)")
        axis.set_ylabel("drop (percentage points)")
        axis.set_xlim(*_widened(baselines))
        axis.set_ylim(*_widened([bound for row in rows for bound in (row.low, row.high) if bound is not None]))
        legend(figure, axis)
    return figure


def one_chance(rows: Sequence[DropRow]) -> float | None:
    """The chance level (a fraction) that all tasks share, if they do and anything comes near to losing all above it."""
    chances = {row.chance for row in rows}
    chance = chances.pop() if len(chances) == 1 else None
    if chance is None or 100 * (min(row.baseline for row in rows) - chance) > max(row.high or row.drop for row in rows):
        return None
    return chance


def _widened(values: Sequence[float]) -> tuple[float, float]:
    least, most = min(values), max(values)
    margin = 0.05 * (most - least) or 1.0
    return least - margin, most + margin


def legend(figure: Figure, axis: Axes, last: Collection[str] = (CHANCE,)) -> None:
    """Above the axes, in as many columns as the names leave room for, those of `last` behind the others.

    The figure grows by the lines that are more than two.
    """
    handles, names = axis.get_legend_handles_labels()
    labels = fitting(names)
    order = sorted(range(len(names)), key=lambda at: names[at] in last)
    columns = max(1, min(len(names), int(19 * figure.get_figwidth()) // (max(map(len, labels.values())) + 8)))
    entries = [handles[at] for at in order], [labels[names[at]] for at in order]
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, -(-len(names) // columns) - 2))
    figure.legend(*entries, loc="outside upper center", ncols=columns)


def logarithmic(axis: Axis, values: Sequence[float]) -> None:
    """Plain numbers at the powers of ten, and at finer ticks where there are too few powers."""
    span = max(values) / min(values)
    if 5 <= span < 100:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(tick_label))
    axis.set_minor_formatter(FuncFormatter(tick_label) if span < 5 else NullFormatter())
