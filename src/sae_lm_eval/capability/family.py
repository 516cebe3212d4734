"""A family's results on the tasks of a run, and what compute buys what is left of each task, group and category.

A family is a CSV with `model`, `results` (a folder that lm_eval wrote, relative to the file), and `params` and `tokens`
or `flops`; optionally `revision`. `sae-lm-eval curve --tasks` writes one. Neither torch nor lm_eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sae_lm_eval.capability.inversion import EquivalentCompute, FamilyScores, equivalent_compute, knots
from sae_lm_eval.comparison.compare import Comparison, documents_of
from sae_lm_eval.comparison.floor import above_chance_p
from sae_lm_eval.comparison.subsets import Cut
from sae_lm_eval.errors import UserError
from sae_lm_eval.results.results import Results, read_results
from sae_lm_eval.scaling.data_files import Row, read_rows
from sae_lm_eval.scaling.family import row_name, training_compute

NAME = "task_family.csv"  # beside the results of a run, it is the run's family without being named
KEYS = ["task", "doc_id"]
ERROR = 0.05  # of the test against guessing
COLUMNS = ("variant", "section", "name", "alias", "measure", "drop", "fraction", "low", "high", "level", "bound")
COLUMNS += ("reason", "flags", "models")
MEASURES = {"margin": "margin of the right answer (nats)", "score": "score"}


@dataclass(frozen=True)
class TaskFamily:
    """Results of models by rising compute (FLOPs); `models` are their names, with revisions."""

    models: tuple[str, ...]
    compute: tuple[float, ...]
    results: tuple[Results, ...]
    source: str


def read_task_family(path: Path) -> TaskFamily:
    """Raises `UserError` for a file without the columns, results that are not there, and compute that is not known."""
    rows = read_rows(path, required=["model", "results"])
    unit, compute = training_compute(rows, kind="family", where=str(path))
    if strange := next((row_name(row) for row, c in zip(rows, compute, strict=True) if not 0 < c < np.inf), None):
        raise UserError(f"'{path}': {strange} has no usable {unit}: give params and tokens, or flops.")
    members = sorted(
        ((c, row_name(row), row) for row, c in zip(rows, compute, strict=True)), key=lambda member: member[:2]
    )
    names = [name for _, name, _ in members]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"'{path}' has {twice} twice.")
    results = tuple(replace(_results(row, path), name=name) for _, name, row in members)
    return TaskFamily(tuple(names), tuple(compute for compute, *_ in members), results, path.stem)


def _results(row: Row, path: Path) -> Results:
    folder = Path(str(row["results"]))
    return read_results(folder if folder.is_absolute() else path.parent / folder)


class CutScores(NamedTuple):
    """A variant's documents in a cut, by a key of `MEASURES`; `refused` where the original is at chance on them."""

    cut: Cut
    variant: str
    measure: str
    scores: FamilyScores
    refused: EquivalentCompute | None


def equivalents(
    measured: Sequence[CutScores], *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """A row for each of `measured`, with `COLUMNS`; `drop` is in the measure's own unit."""
    rows = []
    for cut, variant, measure, scores, refused in measured:
        equivalent = refused or equivalent_compute(scores, level=level, draws=draws, rng=seed)
        row = {"variant": variant, "section": cut.section, "name": cut.name, "alias": cut.alias}
        row |= {"measure": MEASURES[measure], "drop": _drop(scores), **asdict(equivalent)}
        row["flags"] = "; ".join(equivalent.flags) or None
        rows.append(row | {"level": level, "models": len(scores.compute)})
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


@dataclass(frozen=True)
class CategoryCurve:
    """Mean scores of a family on the documents of a task, group or category, by share of the original's compute.

    `knots` are shares and scores between which fractions are read, by rising compute; `variants` are the spliced
    models' scores.
    """

    section: str
    name: str
    alias: str
    measure: str
    share: tuple[float, ...]
    score: tuple[float, ...]
    knots: tuple[tuple[float, float], ...]
    variants: Mapping[str, float]


def category_curves(measured: Sequence[CutScores]) -> list[CategoryCurve]:
    """Of each section and name by the first measure that it has."""
    curves: dict[tuple[str, str], CategoryCurve] = {}
    for cut, variant, measure, scores, _ in measured:
        means = scores.members @ scores.weights
        after = float(means[scores.own]) - _drop(scores)
        curve = curves.get((cut.section, cut.name))
        if curve is None:
            share = tuple(float(c) for c in scores.compute / scores.compute[scores.own])
            rising = tuple((float(x), float(y)) for x, y in zip(*knots(scores), strict=True))
            where = (cut.section, cut.name, cut.alias, MEASURES[measure], share, tuple(map(float, means)), rising)
            curves[cut.section, cut.name] = CategoryCurve(*where, {variant: after})
        elif curve.measure == MEASURES[measure]:
            variants = {**curve.variants, variant: after}
            curves[cut.section, cut.name] = replace(curve, variants=variants)
    return list(curves.values())


def cut_scores(comparison: Comparison, family: TaskFamily) -> list[CutScores]:
    """Of each cut and variant of a comparison: by margins first, then by the tasks' scores.

    Raises `UserError` where the family lacks the original, or was asked other tasks, documents, prompts or shots.
    """
    own = _own(comparison.baseline, family)
    others = [results for place, results in enumerate(family.results) if place != own]
    if not others:
        raise UserError(f"The family '{family.source}' has no model but the run's own, so there is nothing between.")
    try:
        read = documents_of(comparison.baseline, others)
    except UserError as error:
        raise UserError(f"The family '{family.source}' is none of this run. {error}") from error
    of_family = {str(name): part.set_index(KEYS) for name, part in read.groupby("variant")}
    documents = comparison.documents()
    answers = {results.name: documents.loc[documents["variant"] == results.name] for results in comparison.variants}
    measured = []
    for cut, variant, measure in product(comparison.cuts, comparison.variants, MEASURES):
        scored = _of_cut(cut, answers[variant.name], of_family, family, own, measure)
        if scored is not None:
            measured.append(CutScores(cut, variant.name, measure, *scored))
    if not measured:
        raise UserError(f"None of the tasks of '{family.source}' has margins or scores that can be compared.")
    return measured


def _own(baseline: Results, family: TaskFamily) -> int:
    """The place of the run's own model in the family."""
    revision = baseline.model_args.get("revision")
    name = row_name({"model": baseline.model_args.get("pretrained"), "revision": revision})
    if name not in family.models:
        raise UserError(f"The family '{family.source}' lacks the run's own model, {name}: {', '.join(family.models)}.")
    return family.models.index(name)


def _of_cut(
    cut: Cut, answers: pd.DataFrame, of_family: Mapping[str, pd.DataFrame], family: TaskFamily, own: int, measure: str
) -> tuple[FamilyScores, EquivalentCompute | None] | None:
    """Scores of a cut's documents, and the refusal where the original is at chance; None where there are none."""
    mine = answers.loc[answers["task"].isin(cut.tasks)].set_index(KEYS)
    if cut.chosen is not None:
        mine = mine.loc[[doc in cut.chosen[task] for task, doc in mine.index]]
    before, after = ("margin_baseline", "margin_variant") if measure == "margin" else (None, "score_lost")
    values = {name: part[after].reindex(mine.index) for name, part in of_family.items()}
    base = mine[before] if before else pd.Series(0.0, mine.index)
    sign = 1 if before else -1
    values_by_model = [base if place == own else sign * values[name] for place, name in enumerate(family.models)]
    members = np.array(values_by_model, dtype=float)
    spliced = sign * mine[after].to_numpy(dtype=float)
    if not len(mine) or not (np.isfinite(members).all() and np.isfinite(spliced).all()):
        return None
    strata = [np.flatnonzero(mine.index.get_level_values("task") == task) for task in cut.tasks]
    strata = [places for places in strata if len(places)]
    weights = np.empty(len(mine))
    if (shares := cut.weights) is not None and len(shares) != len(strata):
        return None  # without one of its tasks it is another mean
    for place, places in enumerate(strata):
        weights[places] = 1 / len(mine) if shares is None else shares[place] / len(places)
    sets = None if mine["set"].isna().all() else mine["set"].to_numpy()
    scores = FamilyScores(np.array(family.compute), members, own, spliced, weights, strata, sets)
    refused = None
    if measure == "score" and _at_chance(mine):
        refused = EquivalentCompute(reason="the original itself is not clearly above chance")
    return scores, refused


def _at_chance(documents: pd.DataFrame) -> bool:
    """Whether right-or-wrong answers of the original are no more than guessing would give: a test at 5%, over sets of
    documents where there are any."""
    right, chance = (documents[name].to_numpy(dtype=float) for name in ("baseline", "chance"))
    if np.isnan(chance).any() or not np.isin(right, (0, 1)).all() or chance.mean() >= 1:
        return False
    sets = documents["set"].to_numpy()
    labels = np.arange(len(right)) if pd.isna(sets).all() else sets
    return above_chance_p(right, chance, labels) > ERROR


def _drop(scores: FamilyScores) -> float:
    return float((scores.members[scores.own] - scores.spliced) @ scores.weights)


def beside(results: Results) -> Path | None:
    """The family's file beside a run's results, or in the two folders above them; None where there is none."""
    above = (results.folder, *results.folder.parents[:2])
    return next((folder / NAME for folder in above if (folder / NAME).is_file()), None)


def equivalent_rows(frame: pd.DataFrame, sections: Sequence[str] = ()) -> list[dict[str, str]]:
    """As text, for a terminal: fraction with its interval, or the bound, or why there is neither."""
    rows = []
    for row in frame.to_dict("records"):
        if sections and row["section"] not in sections:
            continue
        rows.append(
            {
                "variant": row["variant"],
                "name": f"{row['section']} {row['alias']}" if row["section"] != "overall" else "overall",
                "by": row["measure"],
                "equivalent compute": equivalent_text(row),
            }
        )
    return rows


def equivalent_text(row: Row) -> str:
    """A fraction with its interval; without one the bound, or n/a with the reason."""
    if row["fraction"] is None:
        return f"{row['bound']}" if row["bound"] else f"n/a: {row['reason']}"
    low, high = ("0" if row["low"] is None else f"{row['low']:.2g}", row["high"])
    return f"{row['fraction']:.2g} ({low} to {'unbounded' if high is None else f'{high:.2g}'})"
