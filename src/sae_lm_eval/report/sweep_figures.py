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

from sae_lm_eval.report.drop_tables import Significance
from sae_lm_eval.report.families import by_l0, by_layer, joined_count, names_by_layer
from sae_lm_eval.report.fidelity_tables import shown_text
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
from sae_lm_eval.report.sweep_settings import (
    RECONSTRUCTION,
    Setting,
    by_layers,
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
FRONTIER: dict[str, Any] = {"color": INK, "linewidth": 0.7, "linestyle": (0, (4, 2))}
Bounds = tuple[float, float, float]


def sweep_pictures(texts: Mapping[str | None, Sequence[Setting]], significance: Significance) -> list[Picture]:
    """The figures for which variants differ in what they show."""
    pictures: list[Picture] = []
    for number, (text, chosen) in enumerate(texts.items(), start=1):
        suffix, on = (f"-{number}", f" ({shown_text(text)})") if len(texts) > 1 else ("", "")
        pictures += _paretos(chosen, suffix, on, significance)
        pictures += _doses(chosen, suffix, on, significance)
        pictures += _layers(chosen, suffix, on, significance)
        pictures += _by_layer(chosen, suffix, on, significance)
    return pictures


def _paretos(chosen: Sequence[Setting], suffix: str, on: str, significance: Significance) -> list[Picture]:
    alone = [setting for setting in singles(chosen) if setting.value("l0")]
    drops = [setting for setting in alone if setting.drop and not setting.drop.at_chance]
    computes = [setting for setting in alone if (setting.value("effective_compute") or 0) > 0]
    latents = "Active latents per token (L0, logarithmic)"
    pictures = []
    if len(drops) > 1:
        caption = (
            f"{latents} and drop in accuracy with its {significance.level:.0%} interval. {_of_line(drops)}The dashed "
            "line is the frontier: the least drop at an L0 or less."
        )
        figure = pareto(drops, drop_of, drop_bounds, on_frontier(drops, drop_of))
        figure.axes[0].set_ylabel("drop (percentage points)")
        alternative = f"A point for each variant. {_largest_and_least(drops, drop_of, 'points')}"
        pictures.append(Picture(f"l0-against-drop{suffix}", f"L0 against drop{on}", caption, alternative, figure))
    if len(computes) > 1:
        caption = (
            f"{latents} and the fraction of the training compute that buys the spliced loss (logarithmic), with its "
            f"95% interval. {_of_line(computes)}The dashed line is the frontier: the most compute at an L0 or less."
        )
        figure = pareto(computes, _compute, _compute_bounds, on_frontier(computes, compute_lost))
        axis = figure.axes[0]
        axis.set_yscale("log")
        logarithmic(axis.yaxis, [_compute(setting) for setting in computes])
        axis.set_ylabel("effective compute (fraction)")
        alternative = f"A point for each variant. {_largest_and_least(computes, _compute, 'of the compute')}"
        name = f"l0-against-effective-compute{suffix}"
        pictures.append(Picture(name, f"L0 against effective compute{on}", caption, alternative, figure))
    return pictures


def _of_line(chosen: Sequence[Setting]) -> str:
    return "A line joins variants of one release, site and width that differ only in L0. " if by_l0(chosen) else ""


def _largest_and_least(chosen: Iterable[Setting], value: Callable[[Setting], float | None], unit: str) -> str:
    """`Largest: 27.0 points in k4. Least: ...`"""
    ordered = sorted(
        (setting for setting in chosen if value(setting) is not None), key=lambda setting: value(setting) or 0.0
    )
    ends = (("Largest", ordered[-1]), ("Least", ordered[0]))
    return " ".join(f"{which}: {value(setting):.3g} {unit} in {setting.name}." for which, setting in ends)


def drop_bounds(setting: Setting) -> Bounds:
    assert setting.drop is not None
    drop, low, high = setting.drop.drop, setting.drop.low, setting.drop.high
    return (drop, drop, drop) if low is None or high is None else (drop, low, high)


def _compute(setting: Setting) -> float:
    return setting.value("effective_compute") or 0.0


def _compute_bounds(setting: Setting) -> Bounds:
    measurement = setting.fidelity["effective_compute"]
    value = _compute(setting)
    return value, measurement.low or value, measurement.high or value


OF_COMPUTE: dict[str, Callable[[Setting], Bounds | None]] = {
    "effective compute": lambda setting: _compute_bounds(setting) if setting.value("effective_compute") else None
}


def pareto(
    chosen: Sequence[Setting],
    value: Callable[[Setting], float | None],
    bounds: Callable[[Setting], Bounds],
    best: Sequence[Setting],
) -> Figure:
    """L0 (logarithmic) against `value`: a colour for each layer, a marker for each width, the frontier as a step.

    A line joins those that differ in their L0 alone.
    """
    layers = sorted({setting.layer for setting in chosen}, key=lambda layer: (len(layer), layer))
    widths = sorted({setting.width for setting in chosen}, key=lambda width: (len(width), width))
    few = len(layers) <= len(COLOURS)
    shades = COLOURS if few else [mpl.colormaps["viridis"](at) for at in np.linspace(0, 0.92, len(layers))]
    colours, markers = dict(zip(layers, shades, strict=False)), dict(zip(widths, cycle(MARKERS), strict=False))
    with mpl.rc_context(STYLE):
        figure = Figure((NARROW, 2.9))
        axis = figure.subplots()
        for setting in chosen:
            x = setting.value("l0")
            _bar(axis, x, bounds(setting), fmt=markers[setting.width], color=colours[setting.layer])
        for family in by_l0(chosen):
            line = [(setting.value("l0"), value(setting)) for setting in family]
            axis.plot(*zip(*line, strict=True), color=colours[family[0].layer], linewidth=0.9, zorder=1.5)
        steps = [(setting.value("l0"), value(setting)) for setting in best]
        axis.step(*zip(*steps, strict=True), where="post", zorder=1, **FRONTIER)
        name_points(axis, [(setting.name, setting.value("l0"), value(setting)) for setting in chosen])
        axis.set_xscale("log")
        logarithmic(axis.xaxis, [setting.value("l0") or 1.0 for setting in chosen])
        axis.set_xlabel("L0 (active latents per token)")
        axis.margins(x=0.15, y=0.12)
        axis.grid()
        entries = [_key(f"layer {layer}", "o", colours[layer]) for layer in layers if len(layers) > 1]
        entries += [_key(f"width {width}", markers[width], INK) for width in widths if len(widths) > 1]
        entries += [Line2D([], [], label="frontier", **FRONTIER)]
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
    for number, (name, x, y) in enumerate(sorted(named, key=lambda point: point[1])):
        place: dict[str, Any] = {"ha": "right", "xytext": (-4, 3)} if number % 2 else {"xytext": (4, 3)}
        axis.annotate(name, (x, y), textcoords="offset points", fontsize=6, **place).set_in_layout(False)


def _doses(chosen: Sequence[Setting], suffix: str, on: str, significance: Significance) -> list[Picture]:
    families = by_scale(chosen)
    panels = _panels(families, _responses(significance))
    if not panels:
        return []
    named = listing(_family_names(families).values())
    return [
        Picture(
            f"drop-against-scale{suffix}",
            f"Dose and response{on}",
            f"Variants that differ in nothing but the scale ({named}): 0 leaves the activation as it "
            f"is, 1 is the whole edit. Bars: {significance.level:.0%} intervals.",
            f"A panel for each of {', '.join(panels)}, a line for each dictionary. All numbers are in the tables.",
            responses(
                families[: len(COLOURS)], _family_names(families), panels, lambda setting: setting.scale, "scale"
            ),
        )
    ]


def _layers(chosen: Sequence[Setting], suffix: str, on: str, significance: Significance) -> list[Picture]:
    """What is lost against the number of layers at which something is spliced in, where variants differ in it."""
    families = by_layers(chosen)
    panels = _panels(families, {**_responses(significance), **OF_COMPUTE})
    if not panels or not layers_differ(chosen):
        return []
    chains = [family for family in families if len(family) > 1]
    alone = [family[0] for family in families if len(family) == 1]
    shown = [*chains[: len(COLOURS) - 1], *([alone] if alone else [])]
    loose = len(shown) - bool(alone)
    names = {at: family[-1].name if at < loose else "others" for at, family in enumerate(shown)}
    missing = chains[len(COLOURS) - 1 :]
    left_out = f" Not drawn: those that end in {listing([chain[-1].name for chain in missing])}." if missing else ""
    drawn = [setting for family in families for setting in family if setting.drop]
    return [
        Picture(
            f"loss-against-layers{suffix}",
            f"Loss against the number of layers{on}",
            f"By how many layers are spliced at once; a line joins variants of which each has all splices of the one "
            f"before. Bars: {significance.level:.0%} intervals.{left_out}",
            f"A panel for each of {', '.join(panels)}. {_largest_and_least(drawn, drop_of, 'points')}",
            responses(shown, names, panels, lambda setting: len(setting.layers), "layers spliced at once", loose),
        )
    ]


def _by_layer(chosen: Sequence[Setting], suffix: str, on: str, significance: Significance) -> list[Picture]:
    """What is lost against the layer at which one dictionary is spliced in, a curve for each family of them."""
    families = by_layer(chosen)
    panels = _panels(families, {**_responses(significance), **OF_COMPUTE})
    if not panels:
        return []
    shown, names = families[: len(COLOURS)], names_by_layer(families)
    missing = [names[at] for at in range(len(shown), len(families))]
    left_out = f" Not drawn: {listing(missing)}." if missing else ""
    several = (
        " Where a width has several variants at a layer, none are joined." if joined_count(shown) < len(shown) else ""
    )
    return [
        Picture(
            f"loss-against-layer{suffix}",
            f"Loss against the layer{on}",
            "By the layer at which one dictionary is spliced in; a line joins the variants of one release, kind of "
            f"site and width. Bars: {significance.level:.0%} intervals.{several}{left_out}",
            f"A panel for each of {', '.join(panels)}, a line for each width. All numbers are in the tables.",
            responses(shown, names, panels, lambda setting: int(setting.layer), "layer", joined_count(shown)),
        )
    ]


def _panels(
    families: Sequence[Sequence[Setting]], responses_by_label: Mapping[str, Callable[[Setting], Bounds | None]]
) -> dict[str, Callable[[Setting], Bounds | None]]:
    """The responses that some variant has."""
    return {
        label: response
        for label, response in responses_by_label.items()
        if any(response(setting) is not None for family in families for setting in family)
    }


def _family_names(families: Sequence[Sequence[Setting]]) -> dict[int, str]:
    """What is spliced in each, with the mode where that is no reconstruction."""
    first = [family[0] for family in families]
    short = without_shared_start(list(dict.fromkeys(setting.dictionary for setting in first)))
    modes = ["" if setting.mode == RECONSTRUCTION else f" ({setting.mode})" for setting in first]
    return {
        at: f"{short[setting.dictionary]}{mode}" for at, (setting, mode) in enumerate(zip(first, modes, strict=True))
    }


def _responses(significance: Significance) -> dict[str, Callable[[Setting], Bounds | None]]:
    reach = NormalDist().inv_cdf((1 + significance.level) / 2)

    def of_metric(metric: str) -> Callable[[Setting], Bounds | None]:
        def bounds(setting: Setting) -> Bounds | None:
            measurement = setting.fidelity.get(metric) if metric != "kl_at_answers" else setting.kl_at_answers
            if measurement is None or measurement.value is None:
                return None
            wide = reach * (measurement.stderr or 0.0)
            return measurement.value, measurement.value - wide, measurement.value + wide

        return bounds

    return {
        "drop (pp)": lambda setting: drop_bounds(setting) if setting.drop else None,
        "delta CE (nats/token)": of_metric("ce_delta"),
        "KL (nats/token)": of_metric("kl"),
        "KL at answers (nats/token)": of_metric("kl_at_answers"),
    }


def responses(
    families: Sequence[Sequence[Setting]],
    names: Mapping[int, str],
    panels: Mapping[str, Callable[[Setting], Bounds | None]],
    at: Callable[[Setting], float],
    label_at: str,
    loose: int | None = None,
) -> Figure:
    """Each response against what `at` gives of a variant, side by side; a line for each family of variants.

    From family `loose` on points are not joined: their variants have nothing to do with each other.
    """
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    ticks = sorted({at(setting) for family in families for setting in family})
    with mpl.rc_context(STYLE):
        figure = Figure((NARROW if columns == 1 else WIDTH, 0.4 + 2.2 * lines))
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
        for axis, (label, bounds) in zip(axes.flat, panels.items(), strict=False):
            for index, family in enumerate(families):
                points = [(at(setting), limits) for setting in family if (limits := bounds(setting)) is not None]
                values = np.array([limits for _, limits in points]).reshape(-1, 3)
                reach = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
                line = "-" if loose is None or index < loose else ""
                look: dict[str, Any] = {
                    "fmt": f"{MARKERS[index]}{line}",
                    "color": COLOURS[index],
                    "label": names[index],
                }
                axis.errorbar([x for x, _ in points], values[:, 0], yerr=reach, **look)
            axis.axhline(0, color=INK, linewidth=0.6, zorder=0.5)
            axis.set_ylabel(label)
            axis.grid(axis="y")
            if len(ticks) <= MOST_TICKS:
                axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        for axis in list(axes.flat)[len(panels) :]:
            axis.set_axis_off()
        figure.supxlabel(label_at, fontsize=8)
        if len(families) > 1:
            legend(figure, axes[0, 0])
    return figure
