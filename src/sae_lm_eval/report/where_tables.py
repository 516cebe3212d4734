"""Where the loss of a variant comes from: the record that `where` wrote, as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_lm_eval.comparison.restored import ACCURACY, KL, MARGIN
from sae_lm_eval.report.figures import Picture, coloured_grid, names_in_figure
from sae_lm_eval.report.formatting import (
    NA,
    Cell,
    ReportTable,
    TableColumn,
    ascii_slug,
    distinct_slugs,
    fixed_decimals,
    interval_text,
    is_number,
    number_cell,
    share,
    significant,
    text_cell,
)
from sae_lm_eval.report.latent_tables import OVERALL, latent_sentences, latent_table, tasks_together
from sae_lm_eval.report.where_records import is_fitted

MEASURES = {ACCURACY: "accuracy", MARGIN: "margin", KL: "KL"}
KINDS = {"restored": "comes back", "alone": "alone", "random": "random"}
NORM = "norm"
SUM, REST = "all classes together", "the rest"
MOST_SHOWN = 100.0  # percent; a drop that is little above 0 has shares far beyond it
LEAST = 1e-37  # edges below stand for the least norm above 0
WIDTHS = {"pp": 1, "nats": 3, "nats/token": 3}


def class_tables(record: Mapping[str, Any]) -> list[ReportTable]:
    """A table of each division."""
    slugs = distinct_slugs(row["division"] for row in record["rows"])
    tables = [class_table(record, division, slug) for division, slug in slugs.items()]
    return [table for table in tables if table is not None]


def latent_tables(record: Mapping[str, Any], *, overall: bool = False) -> list[ReportTable]:
    """The table of latents, if there are any; `overall` leaves those of all tasks together."""
    latents = record.get("latents")
    if overall and latents:
        record = {**record, "latents": {**latents, "rows": [row for row in latents["rows"] if row["name"] == OVERALL]}}
    table = latent_table(record, f"where-{_slug(record)}-latents")
    return [] if table is None else [table]


@dataclass(frozen=True)
class QuestionPage:
    """The questions of a variant token by token: the name of the page's file, its title, and the record."""

    file: str
    title: str
    record: Mapping[str, Any]


def question_pages(records: Sequence[Mapping[str, Any]]) -> tuple[QuestionPage, ...]:
    """A page of each record that has questions."""
    return tuple(
        QuestionPage(f"questions-{_slug(record)}.html", record["variant"], record)
        for record in records
        if record.get("questions")
    )


def untold(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why records have no numbers of something that was asked."""
    reasons = [(record.get("latents") or {}).get("reason") for record in records]
    sentences = [sentence for record in records for sentence in record.get("not_told") or []]
    return [*sentences, *(f"No latents: {reason}" for reason in reasons if reason)]


def where_picture(record: Mapping[str, Any]) -> Picture | None:
    """Classes by parts of the tasks: the share of the drop in margin that comes back, else of KL.

    Groups are shown where there are any, else tasks. None where no share is given of any measure.
    """
    for measure in (MARGIN, KL):
        rows = [row for row in record["rows"] if row["measure"] == measure and is_number(row["restored"])]
        if rows:
            return _picture(record, rows, MEASURES[measure])
    return None


def _picture(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], measure: str) -> Picture:
    sections = {row["section"] for row in rows}
    inner = "group" if "group" in sections else "task"
    parts = list(dict.fromkeys(row["name"] for row in rows if row["section"] in (OVERALL, inner)))
    classes = list(dict.fromkeys((row["division"], row["class"]) for row in rows if row["class"] != SUM))
    values = np.full((len(classes), len(parts)), np.nan)
    for row in rows:
        if row["class"] != SUM and row["name"] in parts:
            values[classes.index((row["division"], row["class"])), parts.index(row["name"])] = row["restored"]
    breaks = [at for at in range(1, len(classes)) if classes[at][0] != classes[at - 1][0]]
    percent = 100 * values
    left = [name if name != REST else f"{name} ({division})" for division, name in classes]
    largest_share = float(np.nanmax(np.abs(percent))) or 1.0
    short = {OVERALL: tasks_together(record)} | names_in_figure([part for part in parts if part != OVERALL])
    above = [short[part] for part in parts]
    figure = coloured_grid(percent, left, above, min(largest_share, MOST_SHOWN), "share (%)", breaks)
    beyond = f" The colours end at {MOST_SHOWN:.0f}%." if largest_share > MOST_SHOWN else ""
    largest = max(
        (row for row in rows if row["name"] == OVERALL and row["class"] != SUM),
        key=lambda row: row["restored"],
        default=None,
    )
    most = "" if largest is None else f" Largest: {largest['class']}, {share(largest['restored'], 0)}."
    drop = f"the {measure} from the baseline" if measure == MEASURES[KL] else f"the drop in {measure}"
    return Picture(
        f"where-{_slug(record)}",
        f"Where the loss of {record['variant']} comes from",
        f"Share (%) of {drop} that comes back when the error of a class of positions is put back, by "
        f"part of the tasks; those whose drop does not exclude 0 are left out.{beyond}",
        f"A grid, a row for each class of positions and a column for each part of the tasks.{most}",
        figure,
    )


def class_table(record: Mapping[str, Any], division: str, slug: str) -> ReportTable | None:
    """The shares of the drop over all tasks by the classes of a division, `slug` in names; None where it has none."""
    rows = [row for row in record["rows"] if row["division"] == division and row["name"] == OVERALL]
    if not rows:
        return None
    covered = {row["class"]: row for row in record["coverage"] if row["division"] == division}
    columns = [TableColumn("class", "left")]
    columns += [TableColumn("documents", spare=1), TableColumn("positions", spare=1)] if covered else []
    columns += [
        TableColumn(f"{shown}: {name}", spare={"restored": 0, "alone": 2, "random": 3}[kind])
        for kind, shown in KINDS.items()
        for name in MEASURES.values()
    ]
    lines = []
    for name in dict.fromkeys(row["class"] for row in rows):
        own = {row["measure"]: row for row in rows if row["class"] == name}
        coverage = _coverage(covered.get(name), record["documents"]) if covered else ()
        lines.append((text_cell(name), *coverage, *_shares(own)))
    blocks = (len(lines) - 1,) if lines and lines[-1][0].text == SUM else ()
    edges = f" {norm_edges(record)}" if division == NORM and record.get("norm_edges") else ""
    return ReportTable(
        f"where-{_slug(record)}-{slug}",
        f"{record['variant']}: share of the drop by {division}",
        f"{caption(record, counted=bool(covered))}{edges}",
        tuple(columns),
        tuple(lines),
        blocks=blocks,
    )


def caption(record: Mapping[str, Any], *, counted: bool) -> str:
    """What the columns of a table of shares are; `counted` where it has those of documents and positions."""
    counts = " Documents: how many have the class; positions: how many it has in one." if counted else ""
    half = "Half of the documents, drawn at random." if record["held_out"] else "All documents."
    return (
        f"Share of the drop on {tasks_together(record)} that comes back when the error of a class is put back, with "
        f"its {record['level']:.0%} interval (Fieller's); that a class makes with its error alone; and that a random "
        f"error of the same norm makes there.{counts} {half}"
    )


def norm_edges(record: Mapping[str, Any]) -> str:
    """At which norms of the error the classes of the division by norm end."""
    edges: Mapping[str, Sequence[float]] = record["norm_edges"]
    listed = "; ".join(
        f"{', '.join(dict.fromkeys(significant(edge) if edge > LEAST else 'above 0' for edge in site_edges))} at {hook}"
        for hook, site_edges in edges.items()
    )
    return f"Edges of the norm: {listed}."


def _coverage(covered: Mapping[str, Any] | None, documents: int) -> tuple[Cell, Cell]:
    if covered is None:
        return text_cell(""), text_cell("")
    fraction = covered["documents"] / documents
    return number_cell(fraction, share(fraction)), number_cell(
        covered["positions"], fixed_decimals(covered["positions"])
    )


def _shares(own: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    cells = []
    for kind in KINDS:
        for measure in MEASURES:
            row = own.get(measure, {})
            value, low, high = (row.get(f"{kind}{end}") for end in ("", "_low", "_high"))
            cells.append(number_cell(value, share(value, 0), _bounds(low, high) if is_number(value) else ""))
    return cells


def _bounds(low: Any, high: Any) -> str:
    return interval_text(low, high, lambda value: share(value, 0))


def where_sentences(record: Mapping[str, Any]) -> list[str]:
    """The drops over all tasks, why a measure has no shares, and what could not be aligned."""
    out = []
    rows = {row["measure"]: row for row in record["rows"] if row["name"] == OVERALL}
    for measure, name in MEASURES.items():
        row = rows.get(measure)
        if row is None:
            continue
        shown = _number(row["unit"])
        bounds = f"{shown(row['drop'])} {row['unit']} ({interval_text(row['drop_low'], row['drop_high'], shown)})"
        why = "" if row["reason"] is None else f" No share is given: {row['reason']}."
        drop = bounds if is_number(row["drop"]) else NA
        what = name if measure == KL else f"drop in {name}"
        questions = f"{row['n']:,} questions of {tasks_together(record).removesuffix(' together')}"
        out.append(f"{record['variant']}: {what} {drop} on {questions}.{why}")
    for name, energy in (record.get("energy") or {}).items():
        fit = f", by a fit to {record['fitted_on']:,} positions of the other documents" if record["fitted_on"] else ""
        out.append(f"{name}: {share(energy)} of the error's squared norm{fit if is_fitted(name) else ''}.")
    out += [*(record.get("not_told") or []), *latent_sentences(record)]
    if record["aligned"] < 1:
        out.append(
            f"The tokens of {share(1 - record['aligned'])} of the requests could not be found in their text: by "
            "segment they are not aligned, by kind special, and no pattern or field marks them."
        )
    return out


def _number(unit: str) -> Any:
    return lambda value: fixed_decimals(value, WIDTHS[unit])


def _slug(record: Mapping[str, Any]) -> str:
    """The variant in the names of files: among several records, one of its own."""
    return record.get("slug") or ascii_slug(record["variant"])
