"""Many folders of runs -> the rows of one table: a variant each, with what it costs and where that is from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange.run_folders import run_folders, run_names
from sae_lm_eval.report.assemble import Shaped, compare_tasks, shape
from sae_lm_eval.report.drop_tables import (
    AT_CHANCE,
    DropRow,
    baseline_cell,
    caution_mark,
    chance_mark,
    drop_cell,
)
from sae_lm_eval.report.fidelity_tables import GROUP, NOISE
from sae_lm_eval.report.formatting import NA, Cell, is_number
from sae_lm_eval.report.provenance import (
    SEEDS,
    ResultsSource,
    dictionary_of,
    mode_of,
    requested_model,
    source,
    top_tasks,
)
from sae_lm_eval.report.summary_table import OF_TEXT, Cost, cost_cell
from sae_lm_eval.results.find import find_results
from sae_lm_eval.results.results import Results

BASELINE = "baseline accuracy (%)"
L0 = "L0"


@dataclass(frozen=True)
class LeaderboardRow:
    """A variant of a run: what it is, what it lost by category (pp) and what else it costs, and its provenance.

    `categories` are by name, and `aliases` what is shown for these; `costs` are by heading.
    """

    run: str
    variant: str
    dictionary: str
    model: str
    mode: str
    questions: str
    overall: Cell
    baseline: Cell
    categories: Mapping[str, Cell]
    aliases: Mapping[str, str]
    costs: Mapping[str, Cell]
    source: ResultsSource


@dataclass(frozen=True)
class Leaderboard:
    """All rows, the least drop first, what the marks in them mean, and what a reader should know of the runs."""

    rows: tuple[LeaderboardRow, ...]
    notes: tuple[str, ...]
    marks: tuple[str, ...] = ()

    @property
    def categories(self) -> dict[str, str]:
        """The headings of the columns of drops by name, those of most rows first; names tell equal aliases apart."""
        aliases = {name: alias for row in reversed(self.rows) for name, alias in row.aliases.items()}
        counts = Counter(aliases.values())
        names = _most_common(row.categories for row in self.rows)
        return {name: aliases[name] if counts[aliases[name]] == 1 else f"{aliases[name]} ({name})" for name in names}

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
    marks: list[str] = []
    names = run_names(folders)
    for number, folder in enumerate(folders, 1):
        say(f"{number} of {len(folders)}: {folder}")
        try:
            shaped = shape(compare_tasks(*find_results(folder)))
            rows += rows_of(shaped, names[folder])
            marks += _marks(shaped)
            notes += [f"{names[folder]}: {note}" for note in dict.fromkeys(shaped.comparison.notes)]
        except UserError as error:
            notes.append(f"Left out is the run {names[folder]}: {error}")
    if not rows:
        raise UserError(f"None of {len(folders)} runs can be shown. {notes[0]}")
    rows.sort(key=lambda row: (row.overall.value is None, row.overall.value or 0.0))
    return Leaderboard(tuple(rows), tuple(notes), tuple(dict.fromkeys(marks)))


def rows_of(shaped: Shaped, run: str) -> list[LeaderboardRow]:
    """The rows of one run of this name."""
    full = {short: name for name, short in shaped.names.items()}
    return [
        _row(replace(results, name=full[results.name]), shaped, results.name, run)
        for results in shaped.comparison.variants
    ]


def _marks(shaped: Shaped) -> list[str]:
    """What the marks in the rows of a run mean, a sentence each."""
    summary = shaped.summary()
    rows = (*summary.rows, *summary.overall)
    noisy = any(value and value.mark for cost in summary.costs for value in cost.measured.values())
    sentences = [chance_mark(rows), caution_mark(rows), f"{NOISE} within the noise floor." if noisy else ""]
    return [sentence.strip() for sentence in sentences if sentence]


def _row(results: Results, shaped: Shaped, variant: str, run: str) -> LeaderboardRow:
    summary = shaped.summary()
    own = {row.name: row for row in summary.rows if row.variant == variant}
    overall = next((row for row in summary.overall if row.variant == variant), None)
    shown = [row for row in own.values() if row.section != "overall"]
    return LeaderboardRow(
        run=run,
        variant=variant,
        dictionary=dictionary_of(results),
        model=_model(results),
        mode=mode_of(results),
        questions=_questions(results),
        overall=_drop_cell(overall, shaped),
        baseline=baseline_cell(overall) if overall is not None and is_number(overall.baseline) else Cell(NA),
        categories={row.name: _drop_cell(row, shaped) for row in shown},
        aliases={row.name: row.alias for row in shown},
        costs=_costs((*summary.costs, *_l0(shaped)), shaped, variant),
        source=source(results),
    )


def _drop_cell(row: DropRow | None, shaped: Shaped) -> Cell:
    """With the mark of a baseline at chance, which these rows do not show beside it."""
    cell = drop_cell(row, shaped.significance)
    return replace(cell, text=f"{cell.text}{AT_CHANCE}") if row is not None and row.at_chance else cell


def _costs(costs: Iterable[Cost], shaped: Shaped, variant: str) -> dict[str, Cell]:
    """By heading, with the text on which they were measured: those of two texts are not to be compared."""
    text = next((task for _, task in shaped.fidelity), "").removeprefix(GROUP)
    on_text = (L0, *(heading for heading, _ in OF_TEXT))
    return {
        f"{cost.heading} on {text}" if cost.heading in on_text else cost.heading: cost_cell(cost.measured.get(variant))
        for cost in costs
    }


def _l0(shaped: Shaped) -> list[Cost]:
    """Of the first text with fidelity, where any variant has one."""
    text = next((task for _, task in shaped.fidelity), None)
    measured = {
        variant: metrics["l0"]
        for (variant, task), metrics in shaped.fidelity.items()
        if task == text and "l0" in metrics
    }
    return [Cost(L0, "", measured)] if any(l0.value is not None for l0 in measured.values()) else []


def _model(results: Results) -> str:
    model, revision = requested_model(results), results.config.get("model_revision")
    return model if revision in (None, "main") else f"{model}@{revision}"


def _questions(results: Results) -> str:
    """The tasks, shots, how many documents, and how they were asked: rows with the same can be compared."""
    measured = results.fidelity_tasks
    tasks = [name for name in top_tasks(results) if name not in measured]
    shots = sorted({results.n_shot.get(name, 0) for name in results.tasks if name not in measured})
    limit = results.config.get("limit")
    parts = [", ".join(tasks) or "no tasks", *(f"{shot}-shot" for shot in shots)]
    parts += [f"limit {limit:g}"] if is_number(limit) else _some_documents(results)
    seed = results.config.get("fewshot_seed", SEEDS["fewshot_seed"])
    parts += [f"few-shot seed {seed}"] if any(shots) and seed != SEEDS["fewshot_seed"] else []
    for what in ("chat_template", "system_instruction"):
        if text := results.raw.get(what):
            parts.append(f"{what.replace('_', ' ')} {hashlib.sha256(str(text).encode()).hexdigest()[:6]}")
    return "; ".join(parts)


def _some_documents(results: Results) -> list[str]:
    """How many documents were asked of how many, where not all were."""
    measured = results.fidelity_tasks
    counts = results.raw.get("n-samples") or {}
    task_counts = [counts[name] for name in results.tasks if name not in measured and name in counts]
    if not all(is_number(count.get(key)) for count in task_counts for key in ("effective", "original")):
        return []
    effective, original = (sum(count[key] for count in task_counts) for key in ("effective", "original"))
    return [f"{effective:,} of {original:,} documents"] if effective < original else []
