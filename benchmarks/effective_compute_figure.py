"""Loss recovered against effective compute for the published dictionaries, as SVG and PNG.

    python benchmarks/effective_compute_figure.py        # writes docs/figures/loss-recovered.{svg,png}

Reads only the literature table that comes with the package.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from sae_lm_eval.scaling import convert_literature

# Okabe and Ito's colours, told apart with every common colour blindness; shapes say the same again.
STYLES = {
    "residual stream": ("#0072B2", "o"),
    "MLP output": ("#E69F00", "s"),
    "attention output": ("#009E73", "^"),
}
SITES = {
    "residual stream": "residual stream",
    "resid_post": "residual stream",
    "resid_pre": "residual stream",
    "resid_mid": "residual stream",
    "mlp_out": "MLP output",
    "attn_out": "attention output",
    "attention output before W_O": "attention output",
}
RECOVERED_TICKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
FLOOR = 1e-4  # lower values are drawn at the edge, as arrows


class Point(NamedTuple):
    """One published dictionary."""

    kind: str
    model: str
    layer: str
    recovered: float
    compute: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "figures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    figure = draw(points(convert_literature()))
    figure.savefig(out / "loss-recovered.svg", metadata={"Date": None})  # the same bytes on every run
    figure.savefig(out / "loss-recovered.png", dpi=200)
    print(f"wrote {out}/loss-recovered.svg and .png")


def points(table: pd.DataFrame) -> list[Point]:
    """The dictionaries with a loss recovered under 1 and an effective compute, or the bound outside the law."""
    dictionaries = []
    for row in table.to_dict("records"):
        compute = row["effective_compute"]
        if compute is None and row["bound"].startswith("<"):
            compute = float(row["bound"].removeprefix("<"))
        if compute is not None and (row["loss_recovered"] or 1) < 1:
            dictionaries.append(Point(SITES[row["site"]], row["model"], row["layer"], row["loss_recovered"], compute))
    return dictionaries


def across(recovered: float) -> float:
    """Place on the axis: the number of nines."""
    return -math.log10(1 - recovered)


def draw(data: list[Point]) -> Figure:
    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "loss-recovered"})
    figure, axes = plt.subplots(figsize=(5.6, 3.9), layout="constrained")
    for kind, (colour, shape) in STYLES.items():
        mine = [point for point in data if point.kind == kind]
        look = {
            "s": 26,
            "facecolor": colour,
            "edgecolor": "white",
            "linewidth": 0.5,
            "zorder": 3,
        }
        shown = [(across(point.recovered), point.compute) for point in mine if point.compute >= FLOOR]
        under = [(across(point.recovered), FLOOR * 1.15) for point in mine if point.compute < FLOOR]
        axes.scatter(*zip(*shown, strict=True), marker=shape, label=f"{kind} ({len(mine)})", **look)
        if under:
            axes.scatter(*zip(*under, strict=True), marker="v", **look)
    scales(axes)
    annotate(axes, data)
    axes.legend(loc="lower right", frameon=False, handletextpad=0.2, borderaxespad=0.2)
    return figure


def scales(axes: Axes) -> None:
    axes.set_xlim(0.2, 3.6)
    axes.set_ylim(FLOOR, 1.5)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([across(tick) for tick in RECOVERED_TICKS]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:.3g}" for tick in RECOVERED_TICKS])
    axes.set_yticks([1, 0.1, 0.01, 0.001, 0.0001], ["1", "0.1", "0.01", "0.001", "<0.0001"])
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("loss recovered (zero ablation)")
    axes.set_ylabel("effective compute (within the law)")


def annotate(axes: Axes, data: list[Point]) -> None:
    """Two dictionaries of one model: the higher loss recovered keeps the smaller share of the compute."""
    pythia = [point for point in data if point.model == "pythia-2.8b"]
    best = max((p for p in pythia if p.kind == "residual stream"), key=lambda p: p.recovered)
    worst = min((p for p in pythia if p.kind == "MLP output"), key=lambda p: p.recovered)
    for point, text in ((best, (2.62, 0.06)), (worst, (0.24, 0.055))):
        axes.annotate(
            f"Pythia-2.8B,\n{point.kind}, layer {point.layer}:\n"
            f"{point.recovered:.1%} recovered,\n{point.compute:.0%} of the compute",
            xy=(across(point.recovered), point.compute),
            xytext=text,
            fontsize=8,
            va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            arrowprops={"arrowstyle": "-", "color": "0.35", "linewidth": 0.8, "shrinkB": 3},
        )


if __name__ == "__main__":
    main()
