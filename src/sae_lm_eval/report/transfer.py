"""The same dictionaries in several models: each model against itself untouched, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import at_home
from sae_lm_eval.report import assemble, render, writer
from sae_lm_eval.report.assemble import Report
from sae_lm_eval.report.drop_tables import DropRow, drop_rows, main_metric
from sae_lm_eval.report.fidelity_tables import Fidelity, fidelity_of, tidy
from sae_lm_eval.report.figures import Picture, heat_map
from sae_lm_eval.report.formatting import fixed_decimals, interval_text, listing
from sae_lm_eval.report.prose import cited, methods
from sae_lm_eval.report.provenance import names_in_report, packages, requested_model, sources
from sae_lm_eval.report.transfer_tables import Matrix, adjusted, gap_table, loss_tables, matrix_table
from sae_lm_eval.results.find import find_results, has_results, is_control
from sae_lm_eval.results.results import Results
from sae_lm_eval.runtime.run_files import read_identity, read_models

SECTIONS = ("overall", "category", "group", "task")
MOST_MATRICES = 12  # of categories, groups or tasks, one each, in a report


@dataclass(frozen=True, eq=False, repr=False)
class Transfer:
    """Variants of several models, each compared with its own model untouched; `comparisons` are by the models' names.

    `own` has the variants whose dictionaries were trained on the model, as far as names say; `notes` is what a reader
    should know besides.
    """

    comparisons: Mapping[str, Comparison]
    own: Mapping[str, frozenset[str]]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<{len(self.variants)} variants in {len(self.comparisons)} models: {', '.join(self.comparisons)}>"

    def _repr_html_(self) -> str:
        return render.table_html(self.matrices()[0])

    @property
    def variants(self) -> list[Results]:
        """The variants of any of the models, reconstructions first."""
        every = {results.name: results for comparison in self.comparisons.values() for results in comparison.variants}
        return sorted(every.values(), key=is_control)

    @property
    def names(self) -> dict[str, str]:
        """What the tables call the variants."""
        return names_in_report(self.variants)

    @property
    def drops(self) -> pd.DataFrame:
        """`Comparison.drops` of each, with the columns `model` and `trained_here`; p is adjusted within a model."""
        parts = []
        for model, comparison in self.comparisons.items():
            part = comparison.drops.copy()
            part.insert(0, "model", model)
            part.insert(1, "trained_here", part["variant"].isin([*self.own.get(model, ())]))
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    @property
    def rows(self) -> dict[str, list[DropRow]]:
        """The rows of each model by the metric that counts."""
        return {model: main_metric(drop_rows(comparison.drops)) for model, comparison in self.comparisons.items()}

    def matrices(self, by: str | None = None) -> list[Any]:
        """A table of variants by models over all tasks; with `by` one for each category, group or task.

        Raises `UserError` where there is nothing of what `by` asks for.
        """
        losses = loss_tables(self._fidelity, self.names) if by is None else []
        if losses and not any(row.section == "overall" for rows in self.rows.values() for row in rows):
            return losses
        return [matrix_table(matrix) for matrix in self._matrices(by)]

    @property
    def _fidelity(self) -> dict[str, Fidelity]:
        return {model: fidelity_of(comparison.variants) for model, comparison in self.comparisons.items()}

    def _matrices(self, by: str | None) -> list[Matrix]:
        rows, section = self.rows, by or "overall"
        names = dict.fromkeys(row.name for model_rows in rows.values() for row in model_rows if row.section == section)
        if not names:
            raise UserError(f"There is nothing to show by {section}: no accuracy was measured so.")
        level = next(iter(self.comparisons.values())).level
        controls = frozenset(results.name for results in self.variants if is_control(results))
        matrices = []
        for name in names:
            chosen = {
                model: {row.variant: row for row in model_rows if (row.section, row.name) == (section, name)}
                for model, model_rows in rows.items()
            }
            matrices.append(Matrix(section, name, adjusted(chosen), self.names, controls, self.own, level))
        return matrices

    def table(self, by: str | None = None) -> pd.DataFrame:
        """A row for each variant, model and, with `by`, category, group or task, unrounded: drops (pp) with bounds.

        `p_adjusted` is that of the stars of `matrices`: Holm's over the tests of all variants and models. Raises
        `UserError` where there is nothing of what `by` asks for.
        """
        rows = [
            (m, row)
            for matrix in self._matrices(by)
            for m, by_variant in matrix.cells.items()
            for row in by_variant.values()
        ]
        return pd.DataFrame(
            {
                "variant": row.variant,
                "model": model,
                "trained_here": row.variant in self.own.get(model, ()),
                **({} if by in (None, "overall") else {by: row.alias}),
                "baseline": 100 * row.baseline,
                "score": 100 * row.score,
                "drop": row.drop,
                "low": row.low,
                "high": row.high,
                "p_adjusted": row.p_adjusted,
                "n": row.n,
            }
            for model, row in rows
        )

    def report(self, path: str | Path) -> Path:
        """Write the report into the folder `path`; returns its page."""
        folder = at_home(path)
        writer.write(transfer_report(self), folder)
        return folder / "report.html"


def read_transfer(folder: Path, baseline: str | None = None, **pairing: Any) -> Transfer:
    """The runs in the folder of several models; `pairing` is as for `assemble.compare_tasks`.

    Raises `UserError` where none of them has results.
    """
    comparisons, notes = {}, []
    for name in read_models(folder):
        if sum(map(has_results, filter(Path.is_dir, (folder / name).glob("*")))) < 2:
            notes.append(f"{name} has no results yet: the same command continues.")
            continue
        untouched, variants = find_results(folder / name, baseline)
        comparisons[name] = assemble.compare_tasks(untouched, variants, **pairing)
    if not comparisons:
        raise UserError(f"None of the models in '{folder}' has results yet: the same command continues.")
    notes += [f"{name}: {note}" for name, comparison in comparisons.items() for note in comparison.notes]
    notes = (*_tokenizers(folder, list(comparisons)), *_chats(comparisons), *notes)
    return Transfer(comparisons, trained_here(comparisons), notes)


def trained_here(comparisons: Mapping[str, Comparison]) -> dict[str, frozenset[str]]:
    """For each model the variants whose dictionaries all name it as the one that they were trained on.

    Of several models that the names may mean it is the one that they give in full, and without a revision, if there is
    such a one; of several revisions it is none. A model with an adapter of its own is another.
    """
    homes: dict[str, list[str]] = {}
    named, plain = set(), set()
    for model, comparison in comparisons.items():
        model_args = comparison.baseline.model_args
        if model_args.get("revision") in (None, "main"):
            plain.add(model)
        for results in comparison.variants:
            splices = results.provenance.get("splices") or []
            if is_control(results) or not splices or any(model_args.get(name) for name in ("peft", "delta")):
                continue
            if all(splice.get("trained_here") for splice in splices):
                homes.setdefault(results.name, []).append(model)
            if all(requested_model(comparison.baseline) in (splice.get("trained_on") or []) for splice in splices):
                named.add((results.name, model))
    for variant, models in homes.items():
        models = [model for model in models if (variant, model) in named] or models
        homes[variant] = [model for model in models if model in plain] or models * (len(models) == 1)
    return {model: frozenset(name for name, models in homes.items() if model in models) for model in comparisons}


def _tokenizers(folder: Path, names: Sequence[str]) -> list[str]:
    identities = {name: read_identity(folder / name) for name in names}
    digests = {name: identity.model.get("tokenizer") for name, identity in identities.items() if identity is not None}
    if len(set(digests.values())) < 2:
        return []
    first = next(iter(digests))
    other = [name for name, digest in digests.items() if digest != digests[first]]
    return [f"The tokenizer of {listing(other)} is not that of {first}: texts are other tokens there."]


def _chats(comparisons: Mapping[str, Comparison]) -> list[str]:
    templated = [name for name, comparison in comparisons.items() if comparison.baseline.raw.get("chat_template")]
    plain = [name for name in comparisons if name not in templated]
    if not templated or not plain:
        return []
    return [f"{listing(templated)} were asked behind a chat template, {listing(plain)} without one."]


# -- the report ------------------------------------------------------------------------------------------------


def transfer_report(transfer: Transfer) -> Report:
    """The report on several models: how much each variant costs in which, and what was measured besides."""
    comparisons = transfer.comparisons
    first = next(
        (comparison for comparison in comparisons.values() if len(comparison.drops)), next(iter(comparisons.values()))
    )
    fidelity = transfer._fidelity
    shown = {model: _renamed(comparison, transfer.names) for model, comparison in comparisons.items()}
    text = methods(first, drop_rows(first.drops), fidelity_of(first.variants)) if len(first.drops) else ""
    common, own = sources([replace(comparison.baseline, name=model) for model, comparison in comparisons.items()])
    return Report(
        title=f"What {len(transfer.variants)} variants cost {len(comparisons)} models",
        headline=tuple(transfer_headline(transfer)),
        tables=tuple(_tables(transfer, fidelity)),
        pictures=tuple(_pictures(transfer, shown)),
        methods=f"{_methods_of_models(transfer)} {text}".strip(),
        works=tuple(cited(text)),
        common=common,
        sources=own,
        packages=packages(first.baseline),
        notes=transfer.notes,
        worst=(),
        drops=transfer.drops,
        fidelity=pd.concat(
            [tidy(measurements).assign(model=model) for model, measurements in fidelity.items()], ignore_index=True
        ),
    )


def write_transfer_report(out: Path, target: Path, **pairing: Any) -> Report:
    """The report on the several models in `out`, written to `target`; `pairing` is as for `read_transfer`."""
    report = transfer_report(read_transfer(out, **pairing))
    writer.write(report, target)
    return report


def _methods_of_models(transfer: Transfer) -> str:
    requested = {name: requested_model(comparison.baseline) for name, comparison in transfer.comparisons.items()}
    models = [name if name == model else f"{name} ({model})" for name, model in requested.items()]
    return (
        f"Each of {listing(models)} was asked the same questions untouched and with each variant, and each drop is "
        "against the same model untouched. Stars are adjusted over all variants and models of a table. The report in "
        "each model's own folder has all of its numbers. What follows is of the first of them."
    )


def _tables(transfer: Transfer, fidelity: Mapping[str, Fidelity]) -> list[Any]:
    tables, rows = [], [row for model_rows in transfer.rows.values() for row in model_rows]
    totals = {row.n for row in rows if row.section == "overall"}
    for section in SECTIONS:
        section_rows = [row for row in rows if row.section == section]
        names = {row.name for row in section_rows}
        is_all = section != "overall" and len(names) == 1 and {row.n for row in section_rows} == totals
        if names and not is_all and (section == "overall" or len(names) <= MOST_MATRICES):
            tables += transfer.matrices(section)
        if section in ("category", "group") and names:
            break  # tasks by themselves are in each model's own report
    gaps = gap_table(transfer.comparisons, transfer.own, transfer.names)
    return [*tables[:1], *gaps, *tables[1:], *loss_tables(fidelity, transfer.names)]


def _renamed(comparison: Comparison, names: Mapping[str, str]) -> list[DropRow]:
    rows = [row for row in main_metric(drop_rows(comparison.drops)) if row.section == "overall"]
    return [replace(row, variant=names[row.variant]) for row in rows]


def _pictures(transfer: Transfer, shown: Mapping[str, Sequence[DropRow]]) -> list[Picture]:
    """Drops of the reconstructions by model and variant, on colours, in the order of the table."""
    order = [transfer.names[results.name] for results in transfer.variants if not is_control(results)]
    rows = [
        replace(row, name=model, alias=model, parent=None)
        for model, model_rows in shown.items()
        for row in sorted((row for row in model_rows if row.variant in order), key=lambda row: order.index(row.variant))
    ]
    figure = heat_map(rows)
    if figure is None:
        return []
    worst = max(rows, key=lambda row: row.drop)
    largest = f"Largest: {fixed_decimals(worst.drop)} points, {worst.variant} in {worst.alias}."
    caption = "Drop in accuracy over all tasks in percentage points: red is worse, blue better."
    text = f"A grid, a row for each model and a column for each variant. {largest}"
    return [Picture("heat-map", "Drop by model and variant", caption, text, figure)]


def transfer_headline(transfer: Transfer) -> list[str]:
    """Where each of the first reconstructions costs most and least."""
    sentences, controls = [], {results.name for results in transfer.variants if is_control(results)}
    overall = {model: [row for row in rows if row.section == "overall"] for model, rows in transfer.rows.items()}
    for name, shown in transfer.names.items():
        by_model = {model: row for model, rows in overall.items() for row in rows if row.variant == name}
        if name in controls or len(by_model) < 2 or len(sentences) == 3:
            continue
        ordered = sorted(by_model, key=lambda model: by_model[model].drop)
        ends = [
            f"{fixed_decimals(by_model[m].drop)} points ({_bounds(by_model[m])}) in {m}"
            for m in (ordered[0], ordered[-1])
        ]
        sentences.append(f"{shown} costs {ends[0]} and {ends[1]}.")
    return sentences or [f"No accuracy was measured in two of {listing(transfer.comparisons)}."]


def _bounds(row: DropRow) -> str:
    return interval_text(row.low, row.high)
