"""How long the texts of each variant stay the baseline's, task by task."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sae_lm_eval.report.figures import COLOURS, MARKERS, MOST_VARIANTS, STYLE, WIDTH, Picture, legend
from sae_lm_eval.report.formatting import fitting
from sae_lm_eval.results.results import Results

MOST_PANELS, COLUMNS = 12, 3


def parting_pictures(variants: Sequence[Results]) -> list[Picture]:
    """One figure with a panel for each task that writes texts; none where no text parts from the baseline's."""
    by_variant = {results.name: results.provenance.get("parted_texts") or {} for results in variants}
    curves = {
        task: {name: by_task[task]["together"] for name, by_task in by_variant.items() if task in by_task}
        for task in dict.fromkeys(task for by_task in by_variant.values() for task in by_task)
    }
    if not any(record["parted"] for by_task in by_variant.values() for record in by_task.values()):
        return []
    shown = dict([*curves.items()][:MOST_PANELS])
    some = f" The first {len(shown)} of {len(curves)} tasks." if len(shown) < len(curves) else ""
    if (left := len(variants) - MOST_VARIANTS) > 0:
        some += f" The first {MOST_VARIANTS} variants; {left} are left out."
    caption = (
        "Share of texts whose first tokens are all the baseline's, against the number of tokens. A text that ends "
        f"without having parted leaves the sample at its end.{some}"
    )
    alternative = "A panel for each task, a falling line for each variant."
    return [
        Picture(
            "parted-texts", "How long texts stay the baseline's", caption, alternative, _figure(shown, [*by_variant])
        )
    ]


def _figure(curves: dict[str, dict[str, dict[int, float]]], names: Sequence[str]) -> Figure:
    columns = min(COLUMNS, len(curves))
    stacked = -(-len(curves) // columns)
    titles = fitting([*curves])
    with mpl.rc_context(STYLE):
        figure = Figure((WIDTH, 0.9 + 1.35 * stacked))
        axes = figure.subplots(stacked, columns, sharex=True, sharey=True, squeeze=False)
        for axis, (task, of_task) in zip(axes.flat, curves.items(), strict=False):
            _panel(axis, of_task, names[:MOST_VARIANTS])
            axis.set_title(titles[task], fontsize=7)
        for index, axis in enumerate(axes.flat):
            axis.tick_params(labelbottom=index + columns >= len(curves))
            if index >= len(curves):
                axis.set_axis_off()
        figure.supxlabel("tokens", fontsize=8)
        figure.supylabel("share still together", fontsize=8)
        legend(figure, axes[0, 0])
    return figure


def _panel(axis: Axes, curves: dict[str, dict[int, float]], names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        together = {int(tokens): share for tokens, share in curves.get(name, {}).items()}  # JSON has names of text
        axis.plot([*together], [*together.values()], label=name, color=COLOURS[index], marker=MARKERS[index])
    axis.set_xscale("log", base=2)
    ticks = sorted({int(tokens) for of_variant in curves.values() for tokens in of_variant})
    axis.set_xticks(ticks[:: -(-len(ticks) // 5)], [f"{tick}" for tick in ticks[:: -(-len(ticks) // 5)]])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(-0.03, 1.03)
    axis.grid(axis="y")
