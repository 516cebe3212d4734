"""Many folders of runs -> the rows of one table: a variant each, with what it costs and where that is from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange.run_folders import run_folders, run_names
from sae_lm_eval.report.assemble import Shaped, compare_tasks, shape
from sae_lm_eval.report.drop_tables import DropRow, drop_cell
from sae_lm_eval.report.formatting import Cell, is_number, number_cell, percent
from sae_lm_eval.report.provenance import ResultsSource, dictionary_of, mode_of, requested_model, source, top_tasks
from sae_lm_eval.report.summary_table import Cost, cost_cell
from sae_lm_eval.results.find import find_results
from sae_lm_eval.results.results import Results

BASELINE = "baseline accuracy (%)"
L0 = "L0"


@dataclass(frozen=True)
class LeaderboardRow:
    """A variant of a run: what it is, what it lost by category (pp) and what else it costs, and its provenance."""

    run: str
    variant: str
    dictionary: str
    model: str
    mode: str
    asked: str
    overall: Cell
    baseline: Cell
    categories: Mapping[str, Cell]
    costs: Mapping[str, Cell]
    source: ResultsSource


@dataclass(frozen=True)
class Leaderboard:
    """All rows, the least drop first, and the folders that could not be read, each with why."""

    rows: tuple[LeaderboardRow, ...]
    notes: tuple[str, ...]

    @property
    def categories(self) -> list[str]:
        """The columns of drops, those of most rows first."""
        return _most_common(row.categories for row in self.rows)

    @property
    def costs(self) -> list[str]:
        """The columns of what else the variants cost."""
        return _most_common(row.costs for row in self.rows)


def _most_common(rows: Iterable[Mapping[str, Cell]]) -> list[str]:
    counts = Counter(name for row in rows for name in row)
    return [name for name, _ in counts.most_common()]  # of equals, the first


def read_leaderboard(paths: Sequence[str | Path], say: Callable[[str], None]) -> Leaderboard:
    """The rows of all runs in folders; `say` hears of each before it is read.

    A run that cannot be read or compared becomes a note. Raises `UserError` where a folder is missing or holds no run,
    and where nothing can be read.
    """
    folders = run_folders(paths)
    rows: list[LeaderboardRow] = []
    notes: list[str] = []
    names = run_names(folders)
    for number, folder in enumerate(folders, 1):
        say(f"{number} of {len(folders)}: {folder}")
        try:
            rows += rows_of(compare_tasks(*find_results(folder)), names[folder])
        except UserError as error:
            notes.append(f"Left out is the run {names[folder]}: {error}")
    if not rows:
        raise UserError(f"None of {len(folders)} runs can be shown. {notes[0]}")
    rows.sort(key=lambda row: (row.overall.value is None, row.overall.value or 0.0))
    return Leaderboard(tuple(rows), tuple(notes))


def rows_of(comparison: Comparison, run: str) -> list[LeaderboardRow]:
    """The rows of one run of this name."""
    shaped = shape(comparison)
    full = {short: name for name, short in shaped.names.items()}
    originals = {results.name: results for results in comparison.variants}
    return [_row(originals[full[results.name]], shaped, results.name, run) for results in shaped.comparison.variants]


def _row(results: Results, shaped: Shaped, variant: str, run: str) -> LeaderboardRow:
    summary = shaped.summary()
    own = {row.name: row for row in summary.rows if row.variant == variant}
    overall = next((row for row in summary.overall if row.variant == variant), None)
    costs = {cost.heading: cost_cell(cost.measured.get(variant)) for cost in (*summary.costs, *_l0(shaped))}
    categories = {row.alias: drop_cell(row, shaped.told) for row in own.values() if row.section != "overall"}
    return LeaderboardRow(
        run=run,
        variant=variant,
        dictionary=dictionary_of(results),
        model=requested_model(results),
        mode=mode_of(results),
        asked=_asked(results),
        overall=drop_cell(overall, shaped.told),
        baseline=_baseline(overall),
        categories=categories,
        costs=costs,
        source=source(results),
    )


def _baseline(overall: DropRow | None) -> Cell:
    value = overall.baseline if overall is not None and is_number(overall.baseline) else None
    return number_cell(value, percent(value))


def _l0(shaped: Shaped) -> list[Cost]:
    """Of the first text with fidelity, where any variant has one."""
    text = next((task for _, task in shaped.fidelity), None)
    measured = {variant: of["l0"] for (variant, task), of in shaped.fidelity.items() if task == text and "l0" in of}
    return [Cost(L0, "", measured)] if any(made.value is not None for made in measured.values()) else []


def _asked(results: Results) -> str:
    """The tasks, shots and how many documents: rows with the same can be compared."""
    measured = results.fidelity_tasks
    tasks = [name for name in top_tasks(results) if name not in measured]
    shots = sorted({results.n_shot.get(name, 0) for name in results.tasks if name not in measured})
    limit = results.config.get("limit")
    parts = [", ".join(tasks) or "no tasks", *(f"{shot}-shot" for shot in shots)]
    return "; ".join([*parts, *([f"limit {limit:g}"] if is_number(limit) else [])])
