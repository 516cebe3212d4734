"""Effective compute of the fidelity that lm_eval's results folders hold. Neither torch nor lm_eval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd

from sae_lm_eval.errors import UserError
from sae_lm_eval.results.find import has_results, natural
from sae_lm_eval.results.results import Results, read_results
from sae_lm_eval.scaling.conversion import convert_text
from sae_lm_eval.scaling.delta import DeltaCE, delta_from_losses, finite_or_none
from sae_lm_eval.scaling.effective import EffectiveCompute
from sae_lm_eval.scaling.loss_curves import MAIN, CurveRun, Curves, curves_for
from sae_lm_eval.scaling.original_model import Original, OriginalNumbers
from sae_lm_eval.scaling.which_original import original_of
from sae_lm_eval.schema import KEY, lacking

ABLATIONS = ("ce_zero", "ce_mean", "loss_recovered_zero", "loss_recovered_mean")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Effective compute of a variant on a text, or on a category of it; `notes` are of curves that were not used."""

    variant: str
    task: str
    result: EffectiveCompute
    ablations: Mapping[str, float | None]
    category: str | None = None
    notes: tuple[str, ...] = ()


def read_all(out: Path) -> list[Results]:
    """The run that `out` holds, or the newest of each folder in it: variants of `run` by the names of their folders.

    Raises `UserError` where there is none.
    """
    folders = [path for path in sorted(out.glob("*"), key=natural) if path.is_dir() and has_results(path)]
    if out.is_file() or any(out.glob("results_*.json")) or not folders:
        return [read_results(out)]
    runs = [(path, read_results(path)) for path in folders]
    return [read if read.folder == path else replace(read, name=path.name) for path, read in runs]


def convert(out: Path, *, original: Mapping[str, Any], **curve: Any) -> list[Converted]:
    """Every text that a variant below `out` measured its spliced loss on, and its categories.

    `original` may have `model`, `params`, `tokens`, `flops` and `vocabulary`, as `curve` what else `effective_compute`
    takes. What they leave open is taken from the results and from a file of `curve` beside them. A category is
    converted by the curve of its text, and is undefined where that has no losses of it. Raises `UserError` where no
    results have a spliced loss.
    """
    conversions = [conversion for results in read_all(out) for conversion in _of_results(results, original, curve, out)]
    if not conversions:
        raise UserError(
            f"The results in '{out}' have no ce_baseline and ce_spliced: run a sae_fidelity task with a dictionary, as "
            "in --tasks sae_fidelity_wikitext, or give the losses themselves (--ce-baseline 3.139 --ce-spliced 3.283)."
        )
    return conversions


def quoted(results: Results, task: str) -> dict[str, Any]:
    """The effective compute of one text, as `convert` has it; where it cannot convert it, as the run recorded it.

    Empty where neither the results nor their record have any.
    """
    recorded = (results.provenance.get("effective_compute") or {}).get(task) or {}
    whole = next(_of_task(results, task, {}, {}, None), None)
    if whole is None:
        return recorded
    record = whole.result.record()
    defined = record["fraction"] is not None or record["bound"]
    return record if defined or not recorded else recorded


def _table(results: Results, task: str) -> dict[str, Any]:
    return {name.removesuffix(",none"): value for name, value in results.scores[task].items()}


def _of_results(
    results: Results, original: Mapping[str, Any], curve: Mapping[str, Any], out: Path
) -> Iterator[Converted]:
    for task in results.scores:
        yield from _of_task(results, task, original, curve, out)


def _of_task(
    results: Results, task: str, original: Mapping[str, Any], curve: Mapping[str, Any], out: Path | None
) -> Iterator[Converted]:
    """The text and then its categories, all by the one curve that is found for the text."""
    table = _table(results, task)
    number = results.documents.get(task)
    delta = _delta({"documents": number, **table})
    if delta is None:
        return
    has_curve = curve.get("family") is not None or curve.get("checkpoints") is not None
    beside = Curves() if has_curve else _beside(results, task, table, out)
    original_model, notes = _original(results, task, beside, original, table), ()
    if original_model.vocabulary is None and (why := lacking(results.provenance.get(KEY, 1))) is not None:
        notes = (f"these results are of an older version, without {why}",)
    parts = (results.provenance.get("fidelity") or {}).get(task, {}).get("by_category") or {}
    deltas = {name: part_delta for name, part in parts.items() if (part_delta := _delta(part)) is not None}
    options = {name: value for name, value in curve.items() if name != "text" or value is not None}
    conversion = convert_text(delta, original_model, deltas, task=task, beside=beside, **options)
    notes = (*conversion.notes, *notes)
    yield Converted(variant=results.name, task=task, result=conversion.result, ablations=_ablations(table), notes=notes)
    for name, effective in conversion.by_category.items():
        ablations = _ablations(parts[name])
        yield Converted(variant=results.name, task=task, category=name, result=effective, ablations=ablations)


def _ablations(table: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: finite_or_none(table.get(name)) for name in ABLATIONS}


def _beside(results: Results, task: str, table: Mapping[str, Any], out: Path | None) -> Curves:
    """The curves that lie beside the results or in the two folders above, where `run` and lm_eval write theirs, and up
    to `out` where that is higher.
    """
    context, baseline = results.provenance.get("max_length"), finite_or_none(table.get("ce_baseline"))
    if context is None or baseline is None:
        return Curves()
    model, revision = _model(results)
    run = CurveRun(
        task=task,
        documents=results.documents.get(task, 0),
        context=int(context),
        model=model,
        revision=revision,
        baseline=baseline,
    )
    above = [results.folder, *results.folder.parents]
    highest = 2 if out is None or out not in above else max(2, above.index(out))
    folders = above[: highest + 1]
    return curves_for(run, [file for folder in folders for file in sorted(folder.glob("*.csv"))])


def _model(results: Results) -> tuple[str, str]:
    given = results.model_args
    return str(given.get("pretrained") or results.raw.get("model_name") or ""), str(given.get("revision") or MAIN)


def _original(
    results: Results, task: str, beside: Curves, given: Mapping[str, Any], table: Mapping[str, Any]
) -> Original:
    """The run's model, by what the user says now, said then, or what the run recorded."""
    model, revision = _model(results)
    args = results.model_args
    recorded = (results.provenance.get("effective_compute") or {}).get(task) or {}
    numbers = {name: float(args[name]) for name in ("params", "tokens") if args.get(name) is not None}
    numbers |= {"vocabulary": recorded.get("vocabulary"), "bytes_per_token": _bytes_per_token(table)}
    numbers = cast("OriginalNumbers", {**numbers, **{k: v for k, v in given.items() if v is not None}})
    return original_of(model, revision, measured=beside.own, **numbers)


def _bytes_per_token(table: Mapping[str, Any]) -> float | None:
    """Of the model's tokenizer on the run's text: nats per token over nats per byte."""
    loss, bits = finite_or_none(table.get("ce_baseline")), finite_or_none(table.get("bits_per_byte_baseline"))
    return loss / (bits * math.log(2)) if loss and bits else None


def _delta(table: Mapping[str, Any]) -> DeltaCE | None:
    """Of ce_baseline, ce_spliced, ce_delta_stderr and documents of a table of metrics; None without losses."""
    baseline, spliced = (finite_or_none(table.get(name)) for name in ("ce_baseline", "ce_spliced"))
    if baseline is None or spliced is None:
        return None
    return delta_from_losses(
        ce_baseline=baseline,
        ce_spliced=spliced,
        standard_error=finite_or_none(table.get("ce_delta_stderr")),
        documents=table.get("documents"),
    )


def to_frame(conversions: list[Converted]) -> pd.DataFrame:
    """A row for each estimate, with the variant, the text, its losses, and whether it is the one to quote."""
    frames = []
    for conversion in conversions:
        frame = conversion.result.to_frame()
        labels = {
            "variant": conversion.variant,
            "task": conversion.task,
            "category": conversion.category,
            "ce_baseline": conversion.result.delta.baseline,
            "ce_spliced": conversion.result.delta.spliced,
            "ce_delta_stderr": conversion.result.delta.standard_error,
            **conversion.ablations,
        }
        for place, (name, value) in enumerate(labels.items()):
            frame.insert(place, name, pd.Series([value] * len(frame), dtype=object))
        quoted = conversion.result.preferred
        frame["quoted"] = [estimate is quoted for estimate in conversion.result.estimates]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
