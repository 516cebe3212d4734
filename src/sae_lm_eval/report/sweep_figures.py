"""The pictures of a sweep: Pareto frontiers, drops by the number of layers, and dose and response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from statistics import NormalDist
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_lm_eval.report.drop_tables import Told
from sae_lm_eval.report.figures import (
    COLOURS,
    INK,
    MARKERS,
    NARROW,
    STYLE,
    WIDTH,
    Picture,
    legend,
    logarithmic,
)
from sae_lm_eval.report.formatting import listing, without_shared_start
from sae_lm_eval.report.sweep_tables import (
    RECONSTRUCTION,
    Setting,
    by_scale,
    compute_lost,
    drop_of,
    layers_differ,
    on_frontier,
    singles,
)

# More or longer names have no room beside their points; the tables have them.
MOST_NAMED, MOST_LETTERS = 8, 16
MOST_TICKS = 8
Bounds = tuple[float, float, float]


def sweep_pictures(texts: Mapping[str | None, Sequence[Setting]], told: Told) -> list[Picture]:
    """The figures for which variants differ in what they show."""
    made: list[Picture] = []
    for number, (text, chosen) in enumerate(texts.items(), start=1):
        suffix, on = (f"-{number}", f" ({text})") if len(texts) > 1 else ("", "")
        made += _paretos(chosen, suffix, on, told)
        made += _doses(chosen, suffix, on, told)
    first = next(iter(texts.values()), [])
    drawn = [of for of in first if of.whole and of.layers and of.drop]
    if layers_differ(drawn):
        made.append(
            Picture(
                "drop-against-layers",
                "Drop against the number of layers",
                f"Drop in accuracy with its {told.level:.0%} interval, by how many layers are spliced at once.",
                f"A point for each variant. {_of_each(drawn, drop_of, 'points')}",
                drop_against_layers(drawn),
            )
        )
    return made


def _paretos(chosen: Sequence[Setting], suffix: str, on: str, told: Told) -> list[Picture]:
    alone = [of for of in singles(chosen) if of.value("l0")]
    drops = [of for of in alone if of.drop]
    computes = [of for of in alone if (of.value("effective_compute") or 0) > 0]
    latents = "Active latents per token (L0, logarithmic)"
    made = []
    if len(drops) > 1:
        caption = (
            f"{latents} and drop in accuracy with its {told.level:.0%} interval. The line is the frontier: the "
            "least drop at an L0 or less."
        )
        figure = pareto(drops, drop_of, drop_bounds, on_frontier(drops, drop_of))
        figure.axes[0].set_ylabel("drop (percentage points)")
        told_of = f"A point for each variant. {_of_each(drops, drop_of, 'points')}"
        made.append(Picture(f"l0-against-drop{suffix}", f"L0 against drop{on}", caption, told_of, figure))
    if len(computes) > 1:
        caption = (
            f"{latents} and the fraction of the training compute that buys the spliced loss (logarithmic), with its "
            "95% interval. The line is the frontier: the most compute at an L0 or less."
        )
        figure = pareto(computes, _compute, _compute_bounds, on_frontier(computes, compute_lost))
        axis = figure.axes[0]
        axis.set_yscale("log")
        logarithmic(axis.yaxis, [_compute(of) for of in computes])
        axis.set_ylabel("effective compute (fraction)")
        told_of = f"A point for each variant. {_of_each(computes, _compute, 'of the compute')}"
        name = f"l0-against-effective-compute{suffix}"
        made.append(Picture(name, f"L0 against effective compute{on}", caption, told_of, figure))
    return made


def _of_each(chosen: Iterable[Setting], value: Callable[[Setting], float | None], unit: str) -> str:
    """`Largest: 27.0 points in k4. Least: ...`"""
    known = sorted((of for of in chosen if value(of) is not None), key=lambda of: value(of) or 0.0)
    ends = (("Largest", known[-1]), ("Least", known[0]))
    return " ".join(f"{which}: {value(of):.3g} {unit} in {of.name}." for which, of in ends)


def drop_bounds(of: Setting) -> Bounds:
    assert of.drop is not None
    drop, low, high = of.drop.drop, of.drop.low, of.drop.high
    return (drop, drop, drop) if low is None or high is None else (drop, low, high)


def _compute(of: Setting) -> float:
    return of.value("effective_compute") or 0.0


def _compute_bounds(of: Setting) -> Bounds:
    made = of.fidelity["effective_compute"]
    value = _compute(of)
    return value, made.low or value, made.high or value


def pareto(
    chosen: Sequence[Setting],
    value: Callable[[Setting], float | None],
    bounds: Callable[[Setting], Bounds],
    best: Sequence[Setting],
) -> Figure:
    """L0 (logarithmic) against `value`: a colour for each layer, a marker for each width, the frontier as a step."""
    layers = sorted({of.layer for of in chosen}, key=lambda layer: (len(layer), layer))
    widths = sorted({of.width for of in chosen}, key=lambda width: (len(width), width))
    few = len(layers) <= len(COLOURS)
    shades = COLOURS if few else [mpl.colormaps["viridis"](at) for at in np.linspace(0, 0.92, len(layers))]
    colours, markers = dict(zip(layers, shades, strict=False)), dict(zip(widths, cycle(MARKERS), strict=False))
    with mpl.rc_context(STYLE):
        figure = Figure((NARROW, 2.9))
        axis = figure.subplots()
        for of in chosen:
            x = of.value("l0")
            _bar(axis, x, bounds(of), fmt=markers[of.width], color=colours[of.layer])
        steps = [(of.value("l0"), value(of)) for of in best]
        axis.step(*zip(*steps, strict=True), where="post", color=INK, linewidth=0.7, zorder=1)
        name_points(axis, [(of.name, of.value("l0"), value(of)) for of in chosen])
        axis.set_xscale("log")
        logarithmic(axis.xaxis, [of.value("l0") or 1.0 for of in chosen])
        axis.set_xlabel("L0 (active latents per token)")
        axis.margins(x=0.15, y=0.12)
        axis.grid()
        entries = [_key(f"layer {layer}", "o", colours[layer]) for layer in layers if len(layers) > 1]
        entries += [_key(f"width {width}", markers[width], INK) for width in widths if len(widths) > 1]
        entries += [Line2D([], [], color=INK, linewidth=0.7, label="frontier")]
        figure.legend(handles=entries, loc="outside upper center", ncols=min(4, len(entries)))
    return figure


def _key(label: str, marker: str, colour: Any) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, label=label)


def _bar(axis: Axes, x: Any, bounds: Bounds, **more: Any) -> None:
    value, low, high = bounds
    axis.errorbar([x], [value], yerr=[[value - low], [high - value]], **more)


def name_points(axis: Axes, named: Sequence[tuple[str, Any, Any]]) -> None:
    """Names beside the points where they have room, to the left and right in turns, so that neighbours do not meet."""
    if len(named) > MOST_NAMED or max(len(name) for name, *_ in named) > MOST_LETTERS:
        return
    for number, (name, x, y) in enumerate(sorted(named, key=lambda of: of[1])):
        place: dict[str, Any] = {"ha": "right", "xytext": (-4, 3)} if number % 2 else {"xytext": (4, 3)}
        axis.annotate(name, (x, y), textcoords="offset points", fontsize=6, **place).set_in_layout(False)


def drop_against_layers(chosen: Sequence[Setting]) -> Figure:
    """Drop (pp) by the number of layers; variants with as many stand side by side, the least drop first."""
    with mpl.rc_context(STYLE):
        figure = Figure((NARROW, 2.9))
        axis = figure.subplots()
        named = []
        counts = sorted({len(of.layers) for of in chosen})
        for at, count in enumerate(counts):
            own = sorted((of for of in chosen if len(of.layers) == count), key=lambda of: drop_of(of) or 0.0)
            for of, x in zip(own, at + np.linspace(-0.25, 0.25, len(own) + 2)[1:-1], strict=True):
                _bar(axis, x, drop_bounds(of), fmt=MARKERS[0], color=COLOURS[0])
                named.append((of.name, x, drop_of(of)))
        name_points(axis, named)
        axis.axhline(0, color=INK, linewidth=0.6, zorder=0.5)
        axis.set_xticks(range(len(counts)), [str(count) for count in counts])
        axis.set_xlim(-0.6, len(counts) - 0.4)
        axis.set_xlabel("layers spliced at once")
        axis.set_ylabel("drop (percentage points)")
        axis.grid(axis="y")
    return figure


def _doses(chosen: Sequence[Setting], suffix: str, on: str, told: Told) -> list[Picture]:
    families = by_scale(chosen)
    panels = {
        label: of
        for label, of in _responses(told).items()
        if any(of(setting) is not None for family in families for setting in family)
    }
    if not panels:
        return []
    named = listing(_family_names(families).values())
    return [
        Picture(
            f"drop-against-scale{suffix}",
            f"Dose and response{on}",
            f"Variants that differ in nothing but the scale ({named}): 0 leaves the activation as it "
            f"is, 1 is the whole edit. Bars: {told.level:.0%} intervals.",
            f"A panel for each of {', '.join(panels)}, a line for each dictionary. All numbers are in the tables.",
            dose_response(families[: len(COLOURS)], panels),
        )
    ]


def _family_names(families: Sequence[Sequence[Setting]]) -> dict[int, str]:
    """What is spliced in each, with the mode where that is no reconstruction."""
    first = [family[0] for family in families]
    short = without_shared_start(list(dict.fromkeys(of.dictionary for of in first)))
    modes = ["" if of.mode == RECONSTRUCTION else f" ({of.mode})" for of in first]
    return {at: f"{short[of.dictionary]}{mode}" for at, (of, mode) in enumerate(zip(first, modes, strict=True))}


def _responses(told: Told) -> dict[str, Callable[[Setting], Bounds | None]]:
    reach = NormalDist().inv_cdf((1 + told.level) / 2)

    def of_metric(metric: str) -> Callable[[Setting], Bounds | None]:
        def bounds(of: Setting) -> Bounds | None:
            made = of.fidelity.get(metric) if metric != "kl_at_answers" else of.kl_at_answers
            if made is None or made.value is None:
                return None
            wide = reach * (made.stderr or 0.0)
            return made.value, made.value - wide, made.value + wide

        return bounds

    return {
        "drop (pp)": lambda of: drop_bounds(of) if of.drop else None,
        "delta CE (nats/token)": of_metric("ce_delta"),
        "KL (nats/token)": of_metric("kl"),
        "KL at answers (nats/token)": of_metric("kl_at_answers"),
    }


def dose_response(
    families: Sequence[Sequence[Setting]], panels: Mapping[str, Callable[[Setting], Bounds | None]]
) -> Figure:
    """Each response against the scale, side by side; a line for each family of variants."""
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    scales = sorted({of.scale for family in families for of in family})
    names = _family_names(families)
    with mpl.rc_context(STYLE):
        figure = Figure((NARROW if columns == 1 else WIDTH, 0.4 + 2.2 * lines))
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
        for axis, (label, bounds) in zip(axes.flat, panels.items(), strict=False):
            for index, family in enumerate(families):
                known = [(of.scale, made) for of in family if (made := bounds(of)) is not None]
                values = np.array([made for _, made in known]).reshape(-1, 3)
                reach = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
                look: dict[str, Any] = {"fmt": f"{MARKERS[index]}-", "color": COLOURS[index], "label": names[index]}
                axis.errorbar([scale for scale, _ in known], values[:, 0], yerr=reach, **look)
            axis.axhline(0, color=INK, linewidth=0.6, zorder=0.5)
            axis.set_ylabel(label)
            axis.grid(axis="y")
            if len(scales) <= MOST_TICKS:
                axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
        for axis in list(axes.flat)[len(panels) :]:
            axis.set_axis_off()
        figure.supxlabel("scale", fontsize=8)
        if len(families) > 1:
            legend(figure, axes[0, 0])
    return figure
