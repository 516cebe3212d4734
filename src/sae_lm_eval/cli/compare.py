"""`sae-lm-eval compare`: result folders in, tables of drops out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lm_eval.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sae_lm_eval.comparison.compare import Comparison

WIDE = 110
UNKNOWN = "-"
MARK = "\N{DAGGER}"
CAPTION = (
    "base: the baseline's score, accuracies in percent. drop: pp for accuracies, nats (and as a ratio) for "
    "perplexities, else the metric's unit, positive where the variant is worse. p: after Holm's adjustment. lost, "
    "gained: documents from right to wrong, from wrong to right. share: of the baseline's accuracy above chance that "
    "is lost; - where that is unknown or not clearly above 0. margin: mean change of the log-probability of the right "
    "answer less that of the best wrong one, in nats."
)


def compare(
    baseline: Annotated[Path, typer.Argument(help="Folder of results of the untouched model.")],
    variants: Annotated[list[Path], typer.Argument(help="Folders of results to compare with it.")],
    categories: Annotated[
        Path | None, typer.Option(help="YAML: category -> tasks or groups, or {field: name} of the documents.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every number to this file.")] = None,
    metrics: Annotated[str, typer.Option(help="primary: one metric a task; all: every one.")] = "primary",
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    draws: Annotated[int, typer.Option(help="Draws of bootstrap and permutations.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
) -> None:
    """What variants lost, document by document; folders are those of lm_eval's --output_path with --log_samples."""
    from rich.console import Console

    from sae_lm_eval.comparison.compare import compare as pair_up
    from sae_lm_eval.comparison.subsets import read_categories_file
    from sae_lm_eval.results.results import read_results
    from sae_lm_eval.schema import VERSION

    chosen = None if categories is None else read_categories_file(categories)
    console = Console()
    comparison = pair_up(
        read_results(baseline),
        [read_results(variant) for variant in variants],
        categories=chosen,
        metrics=metrics,
        level=level,
        draws=draws,
        seed=seed,
    )
    _print(comparison, console)
    if csv is not None:
        try:
            comparison.drops.assign(schema=VERSION).to_csv(csv, index=False)
        except OSError as error:
            raise UserError(f"'{csv}' cannot be written: {error.strerror or error}.") from error
        console.print(f"Written: {csv}", markup=False, highlight=False)


def _print(comparison: Comparison, console: Console) -> None:
    from sae_lm_eval.comparison.compare import SECTIONS

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    drops: list[dict[str, Any]] = comparison.drops.to_dict("records")  # pyright: ignore[reportAssignmentType]
    say(f"baseline: {comparison.baseline.name}")
    for variant in comparison.variants:
        say(f"\nvariant: {variant.name}")
        for section, title in SECTIONS.items():
            for kind in ("accuracy", "continuous"):
                of = {"variant": variant.name, "section": section, "kind": kind}
                rows = [row for row in drops if row.items() >= of.items()]
                if rows:
                    console.print(_table(rows, title, comparison.level, wide=console.width >= WIDE))
                    say("")
    say(CAPTION)
    intervals, tests = ("; ".join(sorted(set(comparison.drops[name]))) for name in ("interval", "test"))
    say(f"Intervals: {intervals}. Tests: {tests}. {comparison.family}")
    for caution, rows in comparison.drops.groupby("caution", sort=False):
        say(f"{MARK} {caution}: {', '.join(dict.fromkeys(rows['alias']))}.")
    for note in comparison.notes:
        say(f"Note: {note}")


def _table(rows: list[dict[str, Any]], title: str, level: float, *, wide: bool) -> Table:
    """Rows of one section and kind; a wide one has the variant's score, the raw p and KL besides."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [_cells(row, f"{100 * level:.4g}%\ninterval") for row in rows]
    left_out = set() if wide else {"score", "raw p", "KL", "ratio", "share\ninterval"}
    headings = [
        name
        for name in dict.fromkeys(name for line in cells for name in line)
        if name not in left_out and (name != "KL" or any(line["KL"] != UNKNOWN for line in cells))
    ]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(title, overflow="fold")
    for name in headings[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for line in cells:
        table.add_row(*(Text(line.get(name, "")) for name in headings))
    return table


def _cells(row: dict[str, Any], interval: str) -> dict[str, str]:
    accuracy = row["kind"] == "accuracy"
    metric = "" if row["metric"] in ("acc", "accuracy") else f" ({row['metric']}, {row['filter']})"
    unit, how, fine = (100, ".1f", "z.1f") if accuracy else (1, ".4g", ".3g")
    cells = {
        "name": f"{row['alias']}{metric}",
        "n": str(row["n"]),
        "base": f"{unit * row['baseline']:{how}}",
        "score": f"{unit * row['score']:{how}}",
        "drop": f"{row['drop']:{fine}}",
        interval: f"{_span(row['low'], row['high'], fine)}{MARK if row['caution'] else ''}",
        "raw p": _p(row["p"]),
        "p": _p(row["p_adjusted"]),
    }
    if not math.isnan(row["ratio"]):
        cells["drop"] += f" (x{row['ratio']:.3g})"
        cells["ratio"] = _span(row["ratio_low"], row["ratio_high"], ".3g")
    if accuracy:
        cells["lost/\ngained"] = f"{row['lost']}/{row['gained']}"
        cells["share"] = _known(row["above_chance_lost"], "z.0%")
        cells["share\ninterval"] = _span(row["above_chance_low"], row["above_chance_high"], "z.0%")
        cells["margin"] = _known(row["margin_change"], "z.2f")
    return cells | {"KL": _known(row["kl"], ".3f")}


def _p(value: float) -> str:
    return "<.001" if value < 5e-4 else f"{value:.3f}".removeprefix("0")


def _span(low: float, high: float, how: str) -> str:
    return UNKNOWN if math.isnan(low) or math.isnan(high) else f"{low:{how}} to {high:{how}}"


def _known(value: float | None, how: str) -> str:
    return UNKNOWN if value is None or math.isnan(value) else f"{value:{how}}"
