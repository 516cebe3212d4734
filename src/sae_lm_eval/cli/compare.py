"""`sae-lm-eval compare`: result folders in, tables of drops out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lm_eval.cli.options import CategoriesFile
from sae_lm_eval.cli.tables import TextTable, print_sentence, print_table
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import for_spreadsheets
from sae_lm_eval.report.formatting import NA, fixed, interval, is_number, probability, share, significant

if TYPE_CHECKING:
    from rich.console import Console

    from sae_lm_eval.comparison.compare import Comparison

SPARED = {"score", "raw p", "KL", "ratio", "share\ninterval"}  # where a terminal has no room
MARK = "\N{DAGGER}"
CAPTION = (
    "base: the baseline's score, accuracies in percent. drop: pp for accuracies, nats (and as a ratio) for "
    "perplexities, else the metric's unit, positive where the variant is worse. p: after Holm's adjustment. lost, "
    "gained: documents from right to wrong, from wrong to right. share: of the baseline's accuracy above chance that "
    "is lost; n/a where that is unknown or not clearly above 0. margin: mean change of the log-probability of the "
    "right answer less that of the best wrong one, in nats."
)


def compare(
    baseline: Annotated[Path, typer.Argument(help="Folder of results of the untouched model.")],
    variants: Annotated[list[Path], typer.Argument(help="Folders of results to compare with it.")],
    categories: CategoriesFile = None,
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
            for_spreadsheets(comparison.drops.assign(schema=VERSION)).to_csv(csv, index=False)
        except OSError as error:
            raise UserError(f"'{csv}' cannot be written: {error.strerror or error}.") from error
        print_sentence(console, f"Written: {csv}")


def _print(comparison: Comparison, console: Console) -> None:
    from sae_lm_eval.comparison.multiplicity import SECTIONS

    def say(text: str) -> None:
        print_sentence(console, text)

    drops: list[dict[str, Any]] = comparison.drops.to_dict("records")  # pyright: ignore[reportAssignmentType]
    say(f"baseline: {comparison.baseline.name}")
    for variant in comparison.variants:
        say(f"\nvariant: {variant.name}")
        for section, title in SECTIONS.items():
            for kind in ("accuracy", "continuous"):
                of = {"variant": variant.name, "section": section, "kind": kind}
                rows = [row for row in drops if row.items() >= of.items()]
                if rows:
                    _print_table(rows, title, comparison.level, console)
                    say("")
    say(CAPTION)
    intervals, tests = ("; ".join(sorted(set(comparison.drops[name]))) for name in ("interval", "test"))
    say(f"Intervals: {intervals}. Tests: {tests}. {comparison.family}")
    for caution, rows in comparison.drops.groupby("caution", sort=False):
        say(f"{MARK} {caution}: {', '.join(dict.fromkeys(rows['alias']))}.")
    for note in comparison.notes:
        say(f"Note: {note}")


def _print_table(rows: list[dict[str, Any]], title: str, level: float, console: Console) -> None:
    """Rows of one section and kind; without the variant's score, the raw p and KL where these have no room."""
    cells = [_cells(row, f"{100 * level:.4g}%\ninterval") for row in rows]
    names = list(dict.fromkeys(name for line in cells for name in line))
    if all(line["KL"] == NA for line in cells):
        names.remove("KL")

    def table(names: list[str]) -> TextTable:
        return TextTable([title, *names[1:]], [[line.get(name, "") for name in names] for line in cells])

    print_table(console, table(names), table([name for name in names if name not in SPARED]))


def _cells(row: dict[str, Any], bounds: str) -> dict[str, str]:
    accuracy = row["kind"] == "accuracy"
    metric = "" if row["metric"] in ("acc", "accuracy") else f" ({row['metric']}, {row['filter']})"
    unit, score, drop = (100, fixed, fixed) if accuracy else (1, partial(significant, digits=4), significant)
    cells = {
        "name": f"{row['alias']}{metric}",
        "n": str(row["n"]),
        "base": score(unit * row["baseline"]),
        "score": score(unit * row["score"]),
        "drop": drop(row["drop"]),
        bounds: f"{interval(row['low'], row['high'], drop)}{MARK if row['caution'] else ''}",
        "raw p": probability(row["p"]),
        "p": probability(row["p_adjusted"]),
    }
    if is_number(row["ratio"]):
        cells["drop"] += f" (x{significant(row['ratio'])})"
        cells["ratio"] = interval(row["ratio_low"], row["ratio_high"], significant)
    if accuracy:
        cells["lost,\ngained"] = f"{row['lost']}, {row['gained']}"
        cells["share"] = share(row["above_chance_lost"], 0)
        cells["share\ninterval"] = interval(row["above_chance_low"], row["above_chance_high"], partial(share, digits=0))
        cells["margin"] = fixed(row["margin_change"], 2)
    return cells | {"KL": fixed(row["kl"], 3)}
