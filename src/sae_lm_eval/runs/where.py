"""Where a variant's errors cost what it lost: its tasks once more, with the error of each class of places put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from sae_lm_eval import schema
from sae_lm_eval.attribution.classes import SITES, Labels, division
from sae_lm_eval.attribution.directions import DirectionClass, Moments
from sae_lm_eval.attribution.patches import Patched, PlaceClass, classes_of, spread
from sae_lm_eval.attribution.segments import PromptDocument
from sae_lm_eval.attribution.token_kinds import Words
from sae_lm_eval.comparison.restored import ACCURACY, KL, MARGIN, PairedLosses
from sae_lm_eval.comparison.subsets import Cut, leaves
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import for_spreadsheets
from sae_lm_eval.report.where_records import FOLDER
from sae_lm_eval.runs.asked_documents import documents_asked
from sae_lm_eval.runs.asked_tasks import AskedTask, asked_tasks, check_asked
from sae_lm_eval.runs.folder_names import BASELINE
from sae_lm_eval.runs.identity_record import model_record
from sae_lm_eval.runs.inquiry import FITTED_ON, Inquiry
from sae_lm_eval.runs.model_pool import LoadedSweep
from sae_lm_eval.runs.sweep import Sweep
from sae_lm_eval.runs.where_requests import labelled
from sae_lm_eval.runs.where_rows import Explained
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.processes import is_distributed
from sae_lm_eval.runtime.progress import ConsoleProgress, quiet
from sae_lm_eval.runtime.run_folder import LOG, held, journal_of, write_json
from sae_lm_eval.splicing.splice import Variant

WHOLE = "reconstruction"
SEED = 0  # of the draw of the documents that are scored, where the others are fitted on


def explain_drops(sweep: Sweep, settings: Any, output_path: Path, question: Inquiry) -> list[Explained]:
    """Explain each variant of a sweep; its record and its documents are written to `output_path`/where.

    Answers are kept there, so that the same command again continues. Raises `UserError` for what cannot be explained.
    """
    if is_distributed() or sweep.ray is not None:
        raise UserError("where runs in one process: leave out accelerate launch and --ray.")
    folder, out = output_path / FOLDER, []
    with (
        held(folder),
        quiet(folder / LOG) as console,
        ConsoleProgress(console, len(sweep.variants)) as shown,
        closing(Journal(folder / journal_of())) as journal,
    ):
        loaded = LoadedSweep(sweep, settings, shown.at, check=partial(_check_tasks, question, settings))
        for asked in sweep.variants:
            shown.at(f"loading {asked.name}")
            bos = loaded.look(asked.name).wants_bos
            models = loaded.joined({asked.name: loaded.variant(asked.name)}, journal, bos)
            shown.at("reading the tasks")
            tasks = asked_tasks(loaded, models[BASELINE])

            def tell(done: int, of: int, name: str = asked.name) -> None:
                shown.at(f"{name}: {done:,} of {of:,} answers")

            found = _explained(asked.name, models[asked.name].spliced, tasks, question, journal, tell)
            found = replace(found, facts={**_asked_of(sweep, loaded, tasks), **found.facts})
            found = found.with_rows(_cuts(loaded, tasks), question.level)
            write_json(folder / f"{asked.name}.json", {schema.KEY: schema.VERSION, **found.record()})
            for_spreadsheets(found.documents()).to_csv(folder / f"{asked.name}.documents.csv", index=False)
            out.append(found)
            loaded.forget()
    return out


def _asked_of(sweep: Sweep, loaded: LoadedSweep, tasks: Sequence[AskedTask]) -> dict[str, Any]:
    """Which model was asked which tasks with which prompts, so that a report takes no record for one of its own run."""
    return {
        "model_args": {key: str(value) for key, value in sweep.model_args.items()},
        "model": model_record(loaded.baseline.spliced)["model"],
        "tasks": [one.name for one in tasks],
        "n_shot": {one.name: one.shots for one in tasks},
        "chat_template": bool(loaded.settings.apply_chat_template),
        "system_instruction": loaded.settings.system_instruction,
    }


def _cuts(loaded: LoadedSweep, tasks: Sequence[AskedTask]) -> list[Cut]:
    """Everything, each group of lm_eval's, and each task; in all of them documents count alike."""
    names = [one.name for one in tasks]
    groups = {str(name): [str(one) for one in inside] for name, inside in loaded.tasks["group_map"].items()}
    inside = {name: [one for one in leaves(groups, name) if one in names] for name in groups}
    kept = {name: own for name, own in inside.items() if 0 < len(own) < len(names)}
    kept_tasks = names if len(names) > 1 else []
    return [
        Cut("overall", "overall", None, "overall", names),
        *(Cut("group", name, None, name, own) for name, own in kept.items()),
        *(Cut("task", name, None, name, [name]) for name in kept_tasks),
    ]


def _explained(
    name: str,
    spliced: Any,
    tasks: Sequence[AskedTask],
    question: Inquiry,
    journal: Journal,
    tell: Callable[[int, int], object],
) -> Explained:
    """What each document lost to the variant and to each of its patches."""
    documents = [document for one in tasks for document in one.documents]
    chosen = _chosen(question, documents)
    _check(question, name, spliced)
    words = Words(document.written for document in documents)
    requests = labelled(spliced, tasks, Labels([division(text, words) for text in question.of_tokens]), chosen)
    meaning = repr([(one.name, one.classes) for one in requests.labels.divisions])
    patched = Patched(spliced, meaning, journal, tell)
    scored = chosen[requests.owner]
    fitted = ~scored if question.fits else scored
    queries = np.array(requests.queries, dtype=object)
    edges = patched.norm_edges(queries[fitted].tolist(), question.parts) if question.parts else None
    places = classes_of(requests.labels, spliced.variant, edges)
    moments, others = Moments(spliced.variant), Moments(spliced.variant)
    if question.of_directions:
        patched.watched(spread(queries[fitted], FITTED_ON).tolist(), moments)
        patched.watched(spread(queries[scored], FITTED_ON).tolist(), others)
    directions = moments.classes(question.of_directions, others)
    classes: list[PlaceClass | DirectionClass] = [*places, *directions]
    variants, keys = _variants(classes, spliced.variant)
    own_tasks = [task for task, use in zip(requests.tasks, scored, strict=True) if use]
    answers = patched.score(variants, queries[scored].tolist(), own_tasks)
    whole = {key: np.full((len(requests.queries), 3), np.nan) for key in answers}
    for key, of in answers.items():
        whole[key][scored] = of
    targets = np.array([len(query.targets) for query in requests.queries])
    losses = _losses(tasks, chosen, requests.owner, whole, targets)
    return Explained(
        name,
        tuple(documents[at] for at in np.flatnonzero(chosen)),
        losses,
        WHOLE,
        tuple((place.division, place.name, keys[at]) for at, place in enumerate(classes)),
        facts={
            "variant": name,
            "by": list(question.by),
            "held_out": question.fits,
            "level": question.level,
            "requests": int(scored.sum()),
            "scored_variants": len(variants),
            "aligned": float(requests.aligned[scored].mean()),
            "norm_edges": edges,
            "fitted_on": moments.positions or None,
            "energy": {
                f"{one.division}: {one.name}": one.energy if np.isfinite(one.energy) else None for one in directions
            },
            "coverage": requests.coverage(chosen),
            "provenance": spliced.provenance(),
        },
    )


def _chosen(question: Inquiry, documents: Sequence[PromptDocument]) -> np.ndarray:
    """Which documents are scored: all, or where something is fitted a half of each task's, drawn by `SEED`.

    Raises `UserError` where none is, or none is left to fit on.
    """
    chosen = np.ones(len(documents), dtype=bool)
    if not question.fits:
        return chosen
    tasks = np.array([document.task for document in documents])
    for task in dict.fromkeys(tasks.tolist()):
        rng, own = np.random.default_rng([SEED, crc32(task.encode())]), np.flatnonzero(tasks == task)
        fitted = (len(own) + rng.integers(2)) // 2  # of an odd number, one more or one less
        chosen[rng.permutation(own)[:fitted]] = False
    if chosen.all() or not chosen.any():
        raise UserError("Half of the documents are to be fitted on, and the others scored: give more than one.")
    return chosen


def _check_tasks(question: Inquiry, settings: Any, tasks: Mapping[str, Any]) -> None:
    """Raises `UserError` for tasks that are not explained, and for a field that no document has."""
    check_asked(tasks)
    if fields := [text.partition(":")[2] for text in question.of_tokens if text.startswith("field:")]:
        known = dict.fromkeys(
            name for docs in documents_asked(tasks, settings).values() for doc in docs.values() for name in doc
        )
        if unknown := [field for field in fields if field not in known]:
            raise UserError(f"--by field:{unknown[0]}: no document has this field; they have {', '.join(known)}.")


def _check(question: Inquiry, name: str, spliced: Any) -> None:
    """Raises `UserError` for a variant without classes, and for one that is run by itself."""
    if {*question.by} == {SITES} and len(spliced.variant.splices) < 2:
        raise UserError(f"--by site divides nothing: {name} is spliced in at one site.")
    if not spliced.is_scored:
        raise UserError(f"where scores the variants of {name} in shared passes, and its model runs each by itself.")


def _variants(
    classes: Sequence[PlaceClass | DirectionClass], variant: Variant
) -> tuple[dict[str, Variant], list[dict[str, str]]]:
    """What is to be scored by key, the variant itself first, and the keys of each class by kind; equal ones once."""
    out, keys = {WHOLE: variant}, []
    random = variant.in_mode("random_error")
    for one in classes:
        of = one.patches(variant, random)
        out |= {key: patched for key, patched in of.values() if key not in out}
        keys.append({kind: key for kind, (key, _) in of.items()})
    return out, keys


def _losses(
    tasks: Sequence[AskedTask],
    chosen: np.ndarray,
    owner: np.ndarray,
    answers: Mapping[str, np.ndarray],
    targets: np.ndarray,
) -> dict[str, PairedLosses]:
    """By measure what each chosen document lost, less than the baseline, by the answers (requests, 3) of each key."""
    first = np.searchsorted(owner, np.arange(len(chosen) + 1))
    measured: dict[str, dict[str, list[np.ndarray]]] = {
        name: {key: [] for key in answers} for name in (ACCURACY, MARGIN)
    }
    number = 0
    for one in tasks:
        own = [at for at in range(number, number + len(one.documents)) if chosen[at]]
        number += len(one.documents)
        part = one.restricted([at - (number - len(one.documents)) for at in own])
        if not own:
            continue
        pairs = {
            key: [[(float(a), bool(b)) for a, b, _ in of[first[at] : first[at + 1]]] for at in own]
            for key, of in answers.items()
        }
        accuracy = {key: part.accuracy(of) for key, of in pairs.items()}
        right = part.right(pairs[BASELINE], accuracy[BASELINE])
        for key, of in pairs.items():
            measured[ACCURACY][key].append(accuracy[key])
            measured[MARGIN][key].append(part.margins(of, right))
    out = {}
    for name, of_keys in measured.items():
        values = {key: np.concatenate(parts) for key, parts in of_keys.items()}
        of = {key: values[BASELINE] - value for key, value in values.items() if key != BASELINE}
        out[name] = PairedLosses(name, values[BASELINE], of)
    tokens = np.bincount(owner, weights=targets, minlength=len(chosen))[chosen]
    kl = {key: np.bincount(owner, weights=of[:, 2], minlength=len(chosen)) for key, of in answers.items()}
    lost = {key: of[chosen] for key, of in kl.items() if key != BASELINE}
    out[KL] = PairedLosses(KL, np.zeros(len(tokens)), lost, tokens)
    return out
