"""A comparison -> the report: its sentences, tables and figures, for whatever format it is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lm_eval.capability.published_scores import published_equivalents
from sae_lm_eval.capability.recovery import recovery
from sae_lm_eval.capability.ruler import ruler, ruler_by_category
from sae_lm_eval.comparison.compare import COLUMNS, Comparison, paired_comparison
from sae_lm_eval.errors import one_of
from sae_lm_eval.report import figures
from sae_lm_eval.report.between_table import between_tables
from sae_lm_eval.report.capability_figure import capability_pictures
from sae_lm_eval.report.capability_tables import Equivalents, equivalent_tables, equivalents_of, published_table
from sae_lm_eval.report.drop_tables import (
    CategoryRows,
    DropRow,
    Significance,
    by_drop,
    category_rows,
    category_tables,
    drop_rows,
    drop_variants,
    main_metric,
    overall_tables,
    section_of,
)
from sae_lm_eval.report.fidelity_tables import Fidelity, fidelity_of, fidelity_tables, tidy
from sae_lm_eval.report.figures import Picture
from sae_lm_eval.report.formatting import ReportTable, TableColumn, listing, text_cell
from sae_lm_eval.report.headline import headline
from sae_lm_eval.report.length_table import length_tables
from sae_lm_eval.report.noise_table import noise_table
from sae_lm_eval.report.parting_figure import parting_pictures
from sae_lm_eval.report.prose import cited, cut_prompts, methods, parted_texts
from sae_lm_eval.report.provenance import (
    ResultsSource,
    dictionary_of,
    mode_of,
    names_in_report,
    packages,
    requested_model,
    site_of,
    sources,
    splice_of,
)
from sae_lm_eval.report.recovery_table import recovery_sentences, recovery_table
from sae_lm_eval.report.released_table import released_notes, released_table
from sae_lm_eval.report.ruler_tables import category_ruler_table, ruler_sentences, ruler_table
from sae_lm_eval.report.summary_table import Summary, costs_of, summarise, summary_table
from sae_lm_eval.report.sweep_figures import sweep_pictures
from sae_lm_eval.report.sweep_settings import notes, settings
from sae_lm_eval.report.sweep_tables import sweep_tables
from sae_lm_eval.report.task_tables import detail_tables
from sae_lm_eval.report.where_records import records_beside
from sae_lm_eval.report.where_tables import (
    QuestionPage,
    class_tables,
    latent_tables,
    question_pages,
    untold,
    where_picture,
)
from sae_lm_eval.report.worst_documents import Worst, worst_documents
from sae_lm_eval.results.find import is_control, told_apart
from sae_lm_eval.results.results import Results


@dataclass(frozen=True)
class Report:
    title: str
    headline: tuple[str, ...]
    tables: tuple[ReportTable, ...]
    pictures: tuple[Picture, ...]
    methods: str
    works: tuple[str, ...]
    common: tuple[tuple[str, str], ...]
    sources: tuple[ResultsSource, ...]
    packages: dict[str, str]
    notes: tuple[str, ...]
    worst: tuple[Worst, ...]
    drops: pd.DataFrame
    fidelity: pd.DataFrame
    equivalents: pd.DataFrame | None = None
    scores: pd.DataFrame | None = None
    questions: tuple[QuestionPage, ...] = ()


def compare_tasks(
    baseline: Results,
    variants: Sequence[Results],
    *,
    categories: Mapping[str, Any] | Path | None = None,
    metrics: str = "all",
    **options: Any,
) -> Comparison:
    """The comparison on every task but those of fidelity, which may be all that was run; `options` as for `compare`."""
    baseline, *variants = told_apart((baseline, *variants))
    less, *others = [results.without_fidelity() for results in (baseline, *variants)]
    if less.tasks:
        comparison = paired_comparison(less, others, categories=categories, metrics=metrics, **options)
        return replace(comparison, baseline=baseline, variants=tuple(variants))
    return Comparison(baseline, tuple(variants), pd.DataFrame(columns=COLUMNS), family="", level=0.95)


@dataclass(frozen=True)
class Shaped:
    """A comparison as the report shows it: short names, reconstructions before controls, rows in the chosen order."""

    comparison: Comparison
    rows: tuple[DropRow, ...]
    fidelity: Fidelity
    names: Mapping[str, str]
    significance: Significance
    equivalents: Equivalents

    def summary(self, by: str | None = None) -> Summary:
        """The content of the one table; see `summarise`."""
        runs = self.comparison.variants
        variants, controls = ([run.name for run in runs if is_control(run) == control] for control in (False, True))
        costs = costs_of(self.fidelity, self.equivalents.frame, self.names)
        return summarise(self.rows, variants, controls, costs, self.fidelity, by)


def summary_tables(shaped: Shaped) -> list[ReportTable]:
    """What the variants lose at a glance: the one table, over all tasks, and against each other."""
    rows, significance = shaped.rows, shaped.significance
    return [
        summary_table(shaped.summary(), significance),
        *overall_tables(rows, significance),
        *between_tables(shaped.comparison.between, significance),
        *length_tables(rows, significance),
    ]


def shape(comparison: Comparison, sort: str = "task", metrics: str = "primary") -> Shaped:
    """`metrics` is `primary` or `all`.

    Raises `UserError` for another `sort` than `task` (lm_eval's order) or `drop` (the largest mean drop of the
    reconstructions first).
    """
    one_of(sort, ("task", "drop"), "sort")
    ordered = sorted(comparison.variants, key=lambda run: (is_control(run), splice_of(run) if is_control(run) else ""))
    names = names_in_report(ordered)
    variants = tuple(replace(results, name=names[results.name]) for results in ordered)
    rank = {name: at for at, name in enumerate(names)}
    rows = [row for row in drop_rows(comparison.drops) if row.primary or metrics == "all"]
    sections = list(dict.fromkeys(row.section for row in rows))
    rows.sort(key=lambda row: (sections.index(row.section), rank[row.variant]))
    rows = [replace(row, variant=names[row.variant]) for row in rows]
    controls = [names[run.name] for run in ordered if is_control(run)]
    between = comparison.between.replace({"variant": dict(names), "other": dict(names)})
    return Shaped(
        replace(comparison, variants=variants, between=between),
        tuple(by_drop(rows, controls) if sort == "drop" else rows),
        fidelity_of(variants),
        names,
        Significance(comparison.level, comparison.family),
        equivalents_of(comparison),
    )


def build(comparison: Comparison, *, sort: str = "task") -> Report:
    """The report of a comparison; nothing is written, and nothing read but the samples of the worst documents."""
    shaped = shape(comparison, sort)
    named, rows, fidelity, names, significance = (
        *(shaped.comparison, shaped.rows, shaped.fidelity, shaped.names, shaped.significance),
    )
    variants, summary = named.variants, shaped.summary()
    shown = category_rows(rows, summary.controls)
    text, ruled, recovered = methods(named, rows, fidelity), ruler(comparison), recovery(comparison)
    swept = settings(variants, rows, fidelity)
    explained, unexplained = records_beside(shaped.comparison)
    common, own = sources((comparison.baseline, *variants))
    return Report(
        title=f"What a splice costs {requested_model(comparison.baseline)}",
        headline=(*headline(named, summary), *recovery_sentences(recovered, names), *ruler_sentences(ruled, names)),
        tables=(
            *summary_tables(shaped),
            variants_table(named, names),
            *(category_tables(shown, significance) if {row.name for row in shown.rows} != {*summary.names} else ()),
            *sweep_tables(swept, significance),
            *fidelity_tables(fidelity),
            *(table for table in [released_table(variants)] if table.rows),
            *noise_table(variants),
            *recovery_table(recovered, names),
            *ruler_table(ruled, names),
            *category_ruler_table(ruler_by_category(comparison), names),
            *(table for record in explained for table in (*class_tables(record), *latent_tables(record))),
            *equivalent_tables(shaped.equivalents.frame, [*rows], names),
            *(published_table(published_equivalents(comparison), names) if shaped.equivalents.frame is None else ()),
            *detail_tables(rows, significance, "group"),
            *detail_tables(rows, significance),
        ),
        pictures=(
            *in_reading_order(
                [
                    *pictures(rows, shown, significance, summary.controls),
                    *capability_pictures(shaped.equivalents.curves, names),
                    *parting_pictures(variants),
                ],
                sweep_pictures(swept, significance),
                len(summary.variants),
            ),
            *(picture for record in explained if (picture := where_picture(record)) is not None),
        ),
        methods=text,
        works=tuple(cited(text)),
        common=common,
        sources=own,
        packages=packages(variants[0]),
        notes=(*_notes(comparison, variants, swept), *shaped.equivalents.notes, *unexplained, *untold(explained)),
        worst=worst_documents(comparison, rows, shown, names),
        drops=comparison.drops,
        fidelity=tidy(fidelity_of(comparison.variants)),
        equivalents=shaped.equivalents.frame,
        questions=question_pages(explained),
    )


def _notes(comparison: Comparison, variants: Sequence[Results], swept: Mapping[Any, Any]) -> tuple[str, ...]:
    """What a reader should know besides, each once."""
    return tuple(
        dict.fromkeys(
            [
                *comparison.notes,
                *released_notes(variants),
                *filter(None, map(cut_prompts, (comparison.baseline, *variants))),
                *(note for variant in variants for note in parted_texts(variant)),
                *(note for compared in swept.values() for note in notes(compared)),
            ]
        )
    )


def variants_table(comparison: Comparison, names: Mapping[str, str]) -> ReportTable:
    """What each variant is; `names` leads from those of the results to those of the report."""
    renamed = any(name != shown for name, shown in names.items())
    heads = ("variant", *(["results"] if renamed else []), "dictionary", "site", "mode")
    rows = [
        (shown, *([name] if renamed else []), dictionary_of(results), site_of(results), mode_of(results))
        for (name, shown), results in zip(names.items(), comparison.variants, strict=True)
    ]
    model = requested_model(comparison.baseline)
    caption = f"What is spliced into {model}, where, and what stands in the place of the activations."
    columns = tuple(TableColumn(head, "left") for head in heads)
    return ReportTable("variants", "The variants", caption, columns, tuple(tuple(map(text_cell, row)) for row in rows))


def in_reading_order(each: Sequence[Picture], sweep: Sequence[Picture], variants: int) -> tuple[Picture, ...]:
    """What the variants have in common first, where those of each variant take several figures."""
    return (*sweep, *each) if variants > figures.MOST_VARIANTS else (*each, *sweep)


def pictures(
    rows: Sequence[DropRow], shown: CategoryRows, significance: Significance, controls: Sequence[str] = ()
) -> list[Picture]:
    """The figures for which there are numbers; controls are lines beside the reconstructions, or nothing."""
    if {row.variant for row in rows} <= {*controls}:
        controls = ()
    lines = [row for row in shown.rows if row.variant in controls]
    shown = replace(shown, rows=tuple(row for row in shown.rows if row.variant not in controls))
    rows = [row for row in rows if row.variant not in controls]
    tasks, bars = section_of(main_metric(rows), "task"), f"{significance.level:.0%} interval"
    some = f" The {len({row.name for row in shown.rows})} with the largest drop." if shown.left_out else ""
    numbers = "All numbers are in the tables."
    candidates = [
        (
            f"drop-by-category{suffix}",
            f"Drop by {shown.what}{part}",
            f"Drop in accuracy with its {bars}, in percentage points; to the right of zero is worse.{some}"
            f"{_of_lines(lines)}",
            f"A row for each {shown.what}, a point with a bar for each variant. {_largest(some_rows)} {numbers}",
            figures.drop_by_category(some_rows, lines),
        )
        for suffix, part, some_rows in _parts(shown.rows)
    ]
    candidates.append(
        (
            "heat-map",
            f"Drop by {shown.what} and variant",
            f"Drop in accuracy in percentage points: red is worse, blue better.{some}",
            f"A grid, a row for each {shown.what} and a column for each variant. {_largest(shown.rows)} {numbers}",
            figures.heat_map(shown.rows),
        )
    )
    candidates += [
        (
            f"drop-against-baseline{suffix}",
            f"Drop against baseline accuracy{part}",
            f"Each task's drop with its {bars} against the accuracy of the untouched model"
            f"{'' if figures.one_chance(some_rows) is None else '; dashed: everything above chance is lost'}.",
            f"A point for each task and variant. {_largest(some_rows)} {numbers}",
            figures.drop_against_baseline(some_rows),
        )
        for suffix, part, some_rows in _parts(tasks)
    ]
    return [Picture(*candidate[:4], candidate[4]) for candidate in candidates if candidate[4] is not None]


def _of_lines(lines: Sequence[DropRow]) -> str:
    names = drop_variants(lines)
    if not names:
        return ""
    controls = f"control{'s' if len(names) > 1 else ''} {listing(names)}"
    if len(names) > len(figures.GREYS):
        controls = f"{len(names)} controls"
    return f" Grey strokes: the {controls}; an arrow points to what lies beyond the axis."


def _parts(rows: Sequence[DropRow]) -> list[tuple[str, str, list[DropRow]]]:
    """The rows by as many variants as a figure tells apart, and what to add to the figure's name and title."""
    variants = drop_variants(rows)
    starts = range(0, len(variants), figures.MOST_VARIANTS)
    if len(starts) < 2:
        return [("", "", list(rows))]
    parts = [variants[at : at + figures.MOST_VARIANTS] for at in starts]
    return [
        (f"-{number}", f" ({number} of {len(parts)})", [row for row in rows if row.variant in part])
        for number, part in enumerate(parts, start=1)
    ]


def _largest(rows: Sequence[DropRow]) -> str:
    """`Largest: villages, 27.0 points in k4.`"""
    row = max(rows, key=lambda row: row.drop, default=None)
    return f"Largest: {row.alias}, {row.drop:.1f} points in {row.variant}." if row else ""
