"""Two sets of lm_eval's results -> what a variant lost, document by document. Neither torch nor lm_eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.comparison.between import between_variants
from sae_lm_eval.comparison.floor import left_out, note_of
from sae_lm_eval.comparison.multiplicity import adjust, sharpen
from sae_lm_eval.comparison.pairs import IntervalOptions, Pair, own_scores, pair_documents, row_of
from sae_lm_eval.comparison.prompt_lengths import SECTION as LENGTH
from sae_lm_eval.comparison.prompt_lengths import length_cuts
from sae_lm_eval.comparison.samples import check_documents, check_runs, read_answers
from sae_lm_eval.comparison.subsets import Cut, categorise, check_field, group_weights, read_categories_file, structure
from sae_lm_eval.comparison.task_metrics import measures_of
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.results.find import is_control, named_results, swapped, told_apart
from sae_lm_eval.results.inspect_logs import on_the_same_samples
from sae_lm_eval.results.results import Results


@dataclass(frozen=True, eq=False)
class Comparison:
    """A baseline and variants that answered the same questions.

    `drops` has a row for each variant, section (overall, group, category, task; length, of the prompt), name, metric
    and filter. Accuracies (`baseline`, `score`, `chance`) are fractions, as in lm_eval; `drop`, `low`, `high` are in
    `unit`: pp for accuracies, nats for perplexities, else the metric's own, and positive where the variant is worse.
    `ratio` is that of two perplexities. Bounds are nan where undefined; `caution` says why, and what else is to be
    known of them.
    `tasks_low` and `tasks_high` bound the drop over tasks like these, where there are ten or more; `detectable` is the
    drop that would have been seen with a power of 80%.
    `p_adjusted` is Holm's; `family` says over which tests. `above_chance_lost` is the share of the accuracy above
    chance that is lost, with its interval, or None for `above_chance_reason`.
    `margin_change` and its bounds are nats, negative where worse; `kl` is nats per scored token, where it was measured.
    `primary` is False for the metrics that only metrics="all" adds. `cuts` is which documents make the rows of each
    section and name; `between` compares the variants that are no controls with each other; `notes` is what a reader
    should know besides.
    """

    baseline: Results
    variants: tuple[Results, ...]
    drops: pd.DataFrame
    family: str
    level: float
    notes: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    between: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    docs_by: str | None = None
    _documents: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def documents(self) -> pd.DataFrame:
        """A row for each variant, task and document, by the task's primary metric.

        Columns: variant, task, filter, doc_id, both scores, `score_lost` (positive where worse), both margins (nats),
        `right`, the indices of the right choices (None where unknown), the `chance` of guessing right, and the `set` of
        documents that it belongs to, None without `docs_by`.
        """
        return self._documents


def with_notes(comparison: Comparison, *notes: str | None) -> Comparison:
    """The comparison with more of what a reader should know."""
    return replace(comparison, notes=(*comparison.notes, *filter(None, notes)))


def results_of(
    baseline: Results | str | Path, variants: Results | str | Path | Sequence[Results | str | Path]
) -> list[Results]:
    """The baseline's results and those of one or several variants, read where folders are given.

    Raises `UserError` where no variant is named.
    """
    others = [variants] if isinstance(variants, Results | str | Path) else variants
    if not others:
        raise UserError("There is nothing to compare the baseline with: name at least one variant.")
    return [run if isinstance(run, Results) else named_results(run) for run in (baseline, *others)]


def paired_comparison(
    baseline: Results | str | Path,
    variants: Results | str | Path | Sequence[Results | str | Path],
    *,
    categories: Mapping[str, Any] | str | Path | None = None,
    metrics: str = "primary",
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
    docs_by: str | None = None,
) -> Comparison:
    """Pair each variant with the baseline on (task, filter, doc_id, doc_hash, prompt_hash) and measure its drop.

    Results, folders that hold them, or logs of Inspect. `categories` maps a name to tasks, groups or patterns, or to
    `{field: name}` of the documents, or is a YAML file of such; `metrics` is "primary" (the first right-or-wrong metric
    of a task, else its first) or "all". `draws` are those of the bootstrap and of the permutations. `docs_by` names a
    field of the documents: those that have the same there belong together, and intervals and tests are over such sets.

    Raises `UserError` for whatever does not pair, naming it.
    """
    _check(metrics, level, draws, seed)
    if isinstance(categories, str | Path):
        categories = read_categories_file(Path(categories))
    runs, notes = _runs(results_of(baseline, variants))
    baseline, *others = runs
    docs_by = docs_by or baseline.docs_by
    pairs, documents, more = _pairs(runs, metrics, docs_by)
    cuts = structure(baseline)
    if categories is not None:
        groups_end = len(cuts) - len(baseline.tasks)
        cuts[groups_end:groups_end] = categorise(categories, baseline.groups, baseline.tasks, documents)
    if docs_by is not None:
        check_field(docs_by, documents)
    by_length, too_long = length_cuts(baseline, others)
    notes += [*more, *too_long]
    options, rows = IntervalOptions(level, draws, seed, docs_by), []
    for run in others:
        for cut in (cut for cut in (*cuts, *by_length) if cut.variants is None or run.name in cut.variants):
            cut_rows, more = _rows(cut, runs, run, pairs[run.name], options)
            rows += cut_rows
            notes += more
    if not rows:
        raise UserError(f"Nothing of {', '.join(run.name for run in runs)} can be compared: {' '.join(notes)}")
    notes += sharpen(rows, options)
    drops = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(("lost", "gained", "shots"), "Int64"))
    for name in ("parent", "above_chance_reason", "caution"):
        drops[name] = drops[name].astype(object).where(drops[name].notna(), None)
    family = adjust(drops)
    return Comparison(
        baseline,
        tuple(others),
        drops,
        family,
        level,
        tuple(dict.fromkeys(notes)),
        tuple(_weighted(cut, runs, pairs[others[0].name]) for cut in cuts),
        between_variants({run.name: pairs[run.name] for run in others if not is_control(run)}, options),
        docs_by,
        _by_document(pairs, docs_by),
    )


COLUMNS = [
    *("variant", "section", "parent", "name", "alias", "metric", "filter", "primary", "kind", "tasks", "n", "shots"),
    *(
        "baseline",
        "score",
        "drop",
        "low",
        "high",
        "tasks_low",
        "tasks_high",
        "unit",
        "ratio",
        "ratio_low",
        "ratio_high",
        "interval",
        "caution",
    ),
    *("p", "p_adjusted", "test", "lost", "gained", "detectable"),
    *("chance", "above_chance_lost", "above_chance_low", "above_chance_high", "above_chance_reason"),
    *("margin_change", "margin_low", "margin_high", "kl"),
]


def documents_of(baseline: Results, others: Sequence[Results]) -> pd.DataFrame:
    """The documents of other models' results as `Comparison.documents` has those of variants.

    Raises `UserError` for whatever does not pair with the baseline's tasks, documents, prompts and shots.
    """
    return _by_document(_pairs(_runs([baseline, *others])[0], "primary", None)[0], None)


def _check(metrics: str, level: float, draws: int, seed: int) -> None:
    """Raise `UserError` for options that say nothing."""
    one_of(metrics, ("primary", "all"), "metrics")
    if not 0 < level < 1:
        raise UserError(f"level={level} must lie between 0 and 1, as 0.95 does.")
    for name, value, least in (("draws", draws, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}.")


def _runs(results: Sequence[Results]) -> tuple[list[Results], list[str]]:
    """The runs under names of their own, without fidelity, and what is to be said of them.

    Raises `UserError` where there is nothing to pair, or a run was asked otherwise than the baseline.
    """
    runs = on_the_same_samples(told_apart(results))
    notes = [note for run in runs for note in run.notes]
    measured = list(dict.fromkeys(task for run in runs for task in run.fidelity_tasks))
    if measured:
        reason = f"{', '.join(measured)}: each run measured its own baseline there, so nothing is paired;"
        notes.append(f"{reason} `sae-lm-eval report` shows what was measured.")
    baseline, *others = runs = [run.without_fidelity() for run in runs]
    if measured and not baseline.tasks:
        raise UserError(f"There is nothing else to compare. {notes[-1]}")
    notes += filter(None, [swapped(baseline, others)])
    for run in others:
        check_runs(baseline, run)
        notes += _cautions(baseline, run)
    return runs, notes


def _cautions(baseline: Results, variant: Results) -> list[str]:
    notes = []
    if baseline.file.resolve() == variant.file.resolve():
        notes.append(f"{variant.name} and the baseline are the same file, '{variant.file}'.")
    adds = "one BOS token is added"
    bos_before, bos_after = (str(run.provenance.get("bos", "")).startswith(adds) for run in (baseline, variant))
    bos_requested = str(baseline.model_args.get("add_bos_token")) in ("True", "1")
    if bos_after and not bos_before and not bos_requested:
        notes.append(
            f"{variant.name} was asked with a BOS token before each prompt, and nothing says that the baseline was: "
            f"its drop may be due to that. Take splice=none or add_bos_token=True for the baseline."
        )
    return notes


def _pairs(
    runs: Sequence[Results], metrics: str, docs_by: str | None
) -> tuple[dict[str, dict[str, list[Pair]]], dict[str, pd.DataFrame], list[str]]:
    """Pairs by variant and task, the baseline's documents by task, and what was left out."""
    baseline, *others = runs
    pairs: dict[str, dict[str, list[Pair]]] = {name: {} for name in (run.name for run in others)}
    documents, notes = {}, []
    for task in baseline.tasks:
        answers = [read_answers(run, task) for run in runs]
        for run, after in zip(others, answers[1:], strict=True):
            check_documents(task, baseline, answers[0], run, after)
        first = answers[0].index.get_level_values("filter")[0]
        documents[task] = answers[0].loc[[first], ["doc"]]
        measures, left_out = measures_of(task, runs, answers, metrics=metrics)
        notes += left_out
        for run, after in zip(others, answers[1:], strict=True):
            pairs[run.name][task] = [pair_documents(measure, answers[0], after, docs_by) for measure in measures]
    return pairs, documents, notes


def _rows(
    cut: Cut, runs: Sequence[Results], run: Results, pairs: Mapping[str, list[Pair]], options: IntervalOptions
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a cut: one for what is right or wrong in all its tasks, or one a metric for a task or a group."""
    chosen = [(task, pair) for task in cut.tasks for pair in pairs[task]]
    if cut.chosen is not None:
        chosen = [(task, pair.restricted(cut.chosen[task])) for task, pair in chosen]
        chosen = [(task, pair) for task, pair in chosen if len(pair.doc_ids)]
    if cut.section == "task":
        return [row_of(cut, run, runs[0], {task: pair}, [1.0], options) for task, pair in chosen], []
    if cut.section == "group":
        return _group_rows(cut, runs, run, chosen, options)
    primary = _accuracies(chosen)
    if not primary and cut.section == LENGTH:
        return [], []
    if not primary:
        return [], [f"{cut.section.capitalize()} '{cut.name}' is left out: none of its tasks is right or wrong."]
    notes = []
    of_everything = cut.section in ("overall", LENGTH)
    gone = left_out(_accuracies([(task, pair) for task in pairs for pair in pairs[task]])) if of_everything else []
    if gone and cut.section == "overall":
        notes.append(note_of(gone, primary, options.docs_by))
    primary = {task: pair for task, pair in primary.items() if task not in gone}
    if not primary:
        return [], []
    sizes = np.array([len(pair.doc_ids) for pair in primary.values()])
    return [row_of(cut, run, runs[0], primary, sizes / sizes.sum(), options)], notes


def _accuracies(chosen: Sequence[tuple[str, Pair]]) -> dict[str, Pair]:
    """Of each task the first that is right or wrong."""
    primary: dict[str, Pair] = {}
    for task, pair in chosen:
        if pair.measure.kind == "accuracy":
            primary.setdefault(task, pair)
    return primary


def _group_rows(
    cut: Cut, runs: Sequence[Results], run: Results, chosen: Sequence[tuple[str, Pair]], options: IntervalOptions
) -> tuple[list[dict[str, Any]], list[str]]:
    rows, notes = [], []
    for key in dict.fromkeys(pair.measure.key for _, pair in chosen):
        members = {task: pair for task, pair in chosen if pair.measure.key == key}
        if any(results.scores.get(cut.name, {}).get(key) is None for results in runs):
            continue  # lm_eval does not score the group by this metric
        lacking = [task for task in cut.tasks if task not in members and key in runs[0].scores[task]]
        kinds = {(pair.measure.kind, pair.measure.sign) for pair in members.values()}
        weights = _weights(cut, list(members), runs, key)
        if weights is None or lacking or len(kinds) > 1:
            why = f"{', '.join(lacking)} cannot be compared by it" if lacking else "its tasks do not average to it"
            notes.append(f"Group {cut.name}: {key} is left out, for {why}.")
            continue
        rows.append(row_of(cut, run, runs[0], members, weights, options))
    if rows and not any(row["primary"] for row in rows):
        rows[0]["primary"] = True
    if not rows and not notes:
        scored = " or ".join(key for key in runs[0].scores[cut.name] if "_stderr" not in key)
        notes.append(f"Group {cut.name} is left out: lm_eval scores it by {scored}; metrics=all compares all metrics.")
    return rows, notes


def _weights(cut: Cut, tasks: Sequence[str], runs: Sequence[Results], key: str) -> np.ndarray | None:
    return group_weights(
        [[run.score(task, key) for task in tasks] for run in runs],
        [runs[0].sizes[task] for task in tasks],
        [run.score(cut.name, key) for run in runs],
    )


def _weighted(cut: Cut, runs: Sequence[Results], pairs: Mapping[str, list[Pair]]) -> Cut:
    """A group with lm_eval's weights by the first metric that all have, and everything less tasks at the floor."""
    if cut.section == "overall":
        gone = left_out(_accuracies([(task, pair) for task in pairs for pair in pairs[task]]))
        return replace(cut, tasks=[task for task in cut.tasks if task not in gone])
    keys = [{pair.measure.key: None for pair in pairs[task]} for task in cut.tasks] if cut.section == "group" else []
    for key in keys[0] if keys else ():
        if all(key in own for own in keys) and all(run.scores.get(cut.name, {}).get(key) is not None for run in runs):
            weights = _weights(cut, cut.tasks, runs, key)
            return cut if weights is None else replace(cut, weights=tuple(weights))
    return cut


def _by_document(measured: Mapping[str, Mapping[str, list[Pair]]], docs_by: str | None) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "variant": variant,
                "task": task,
                "filter": pair.measure.filter,
                "doc_id": pair.doc_ids,
                "baseline": own_scores(pair, pair.before),
                "variant_score": own_scores(pair, pair.after),
                "score_lost": pair.measure.sign * (own_scores(pair, pair.before) - own_scores(pair, pair.after)),
                "margin_baseline": pair.margin_before,
                "margin_variant": pair.margin_after,
                "right": pair.right,
                "chance": pair.chance,
                "set": None if docs_by is None else pair.labels,
            }
        )
        for variant, tasks in measured.items()
        for task, pairs in tasks.items()
        for pair in pairs[:1]
    ]
    return pd.concat(frames, ignore_index=True)
