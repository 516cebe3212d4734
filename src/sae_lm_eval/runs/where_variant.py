"""One variant explained: its classes are scored, and what is told of its latents and of single questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np

from sae_lm_eval.attribution.classes import NORMS_OF, SITES, Labels, division
from sae_lm_eval.attribution.directions import DirectionClass, Moments
from sae_lm_eval.attribution.near_misses import MissedEnergy
from sae_lm_eval.attribution.patches import Patched, PlaceClass, classes_of, spread
from sae_lm_eval.attribution.segments import PromptDocument
from sae_lm_eval.attribution.token_kinds import Words
from sae_lm_eval.comparison.restored import MARGIN, MISSED, NO_MARGIN, PairedLosses
from sae_lm_eval.comparison.subsets import Cut
from sae_lm_eval.errors import UserError
from sae_lm_eval.runs.asked_tasks import AskedTask
from sae_lm_eval.runs.inquiry import FITTED_ON, Inquiry
from sae_lm_eval.runs.where_latents import MarginLosses, latents_record
from sae_lm_eval.runs.where_losses import contrasts_of, losses_of, margins_lost
from sae_lm_eval.runs.where_questions import named_questions, question_record, shown_questions
from sae_lm_eval.runs.where_requests import Requests, labelled
from sae_lm_eval.runs.where_rows import Explained
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.splicing.splice import Variant

WHOLE = "reconstruction"
SEED = 0  # of the draw of the documents that are scored, where the others are fitted on
Answers = Mapping[str, np.ndarray]  # by key (requests, 3), nan of those that are not scored


@dataclass(frozen=True, eq=False)
class VariantInquiry:
    """What is asked of a variant, and with which documents and requests.

    Raises `UserError` where it has no classes, is run by itself, or nothing is left to score or to fit on.
    """

    name: str
    spliced: Any
    tasks: Sequence[AskedTask]
    cuts: Sequence[Cut]
    question: Inquiry
    journal: Journal
    tell: Callable[[int, int], object]

    def __post_init__(self) -> None:
        check_variant(self.question, self.name, self.spliced)
        _ = self.named

    @cached_property
    def documents(self) -> list[PromptDocument]:
        return [document for task in self.tasks for document in task.documents]

    @cached_property
    def chosen(self) -> np.ndarray:
        return chosen_documents(self.question, self.documents)

    @cached_property
    def named(self) -> list[int]:
        """The documents that the user names."""
        return named_questions(self.question, self.documents, self.chosen)

    @cached_property
    def requests(self) -> Requests:
        words = Words(document.written for document in self.documents)
        labels = Labels([division(text, words) for text in self.question.of_tokens])
        return labelled(self.spliced, self.tasks, labels, self.chosen)

    @cached_property
    def scored(self) -> np.ndarray:
        """Which requests are."""
        return self.chosen[self.requests.owner]

    @cached_property
    def patched(self) -> Patched:
        meaning = repr([(division.name, division.classes) for division in self.requests.labels.divisions])
        return Patched(self.spliced, meaning, self.journal, self.tell)

    def queries(self, which: np.ndarray) -> list[Any]:
        return np.array(self.requests.queries, dtype=object)[which].tolist()

    def answers(self, variants: Mapping[str, Variant]) -> dict[str, np.ndarray]:
        """What the baseline and some variants answer to the requests that are scored."""
        return {key: scores for some in self.answers_in_turn(variants) for key, scores in some.items()}

    def answers_in_turn(self, variants: Mapping[str, Variant]) -> Iterator[dict[str, np.ndarray]]:
        """`answers` of the baseline and a few variants at a time."""
        tasks = [task for task, use in zip(self.requests.tasks, self.scored, strict=True) if use]
        for some in self.patched.score_some(variants, self.queries(self.scored), tasks):
            whole = {
                key: np.full((len(self.requests.queries), scores.shape[1]), np.nan) for key, scores in some.items()
            }
            for key, scores in some.items():
                whole[key][self.scored] = scores
            yield whole

    def losses(self, answers: Answers) -> dict[str, PairedLosses]:
        targets = np.array([len(query.targets) for query in self.requests.queries])
        return losses_of(self.tasks, self.chosen, self.requests.owner, answers, targets)

    def margins(self, answers: Answers, losses: Mapping[str, PairedLosses]) -> MarginLosses:
        """The documents that have a margin, and what each lost of it."""
        queries = self.requests.queries
        contrasts = contrasts_of(self.tasks, self.chosen, self.requests.owner, answers, queries, WHOLE)
        lost = dict(zip(np.flatnonzero(self.chosen).tolist(), losses[MARGIN].by_key[WHOLE].tolist(), strict=True))
        kept = [contrast for contrast in contrasts if np.isfinite(lost[contrast.document])]
        return MarginLosses(kept, {contrast.document: lost[contrast.document] for contrast in kept})


def explained(inquiry: VariantInquiry) -> Explained:
    """What each document lost to the variant and to each of its patches; its latents and questions, where asked for."""
    question, spliced, requests = inquiry.question, inquiry.spliced, inquiry.requests
    fitted = inquiry.queries(~inquiry.scored if question.fits else inquiry.scored)
    edges = inquiry.patched.norm_edges(fitted, question.parts) if question.parts else None
    moments, directions, not_told = _directions(inquiry, fitted)
    classes: list[PlaceClass | DirectionClass] = [*classes_of(requests.labels, spliced.variant, edges), *directions]
    if not classes:
        raise UserError(not_told[0] if not_told else f"--by divides nothing of {inquiry.name}.")
    variants, keys = _variants(classes, spliced.variant)
    answers = inquiry.answers(variants)
    losses = inquiry.losses(answers)
    return Explained(
        inquiry.name,
        tuple(inquiry.documents[at] for at in np.flatnonzero(inquiry.chosen)),
        losses,
        WHOLE,
        tuple((place.division, place.name, keys[at]) for at, place in enumerate(classes)),
        facts={
            "variant": inquiry.name,
            "by": list(question.by),
            "held_out": question.fits,
            "level": question.level,
            "requests": int(inquiry.scored.sum()),
            "scored_variants": len(variants),
            "aligned": float(requests.aligned[inquiry.scored].mean()),
            "norm_edges": edges,
            "fitted_on": moments.positions or None,
            "energy": {
                f"{direction.division}: {direction.name}": direction.energy if np.isfinite(direction.energy) else None
                for direction in directions
            },
            "not_told": not_told,
            "coverage": requests.coverage(inquiry.chosen),
            **_of_margins(inquiry, answers, losses),
            "provenance": spliced.provenance(),
        },
    )


def _directions(inquiry: VariantInquiry, fitted: Sequence[Any]) -> tuple[Moments, list[DirectionClass], list[str]]:
    """The parts of the error that are asked for, what they are fitted by, and why there is none of what cannot be."""
    question, variant, not_told = inquiry.question, inquiry.spliced.variant, []
    moments, others, scored = Moments(variant), Moments(variant), inquiry.queries(inquiry.scored)
    if question.of_directions:
        inquiry.patched.watched(spread(fitted, FITTED_ON), moments)
        inquiry.patched.watched(spread(scored, FITTED_ON), others)
    directions = moments.classes(question.of_directions, others)
    if MISSED in question.by:
        try:
            energy = MissedEnergy(variant)
        except UserError as error:
            not_told.append(str(error))
        else:
            inquiry.patched.watched(spread(scored, NORMS_OF), energy)
            directions += energy.classes()
    return moments, directions, not_told


def _of_margins(inquiry: VariantInquiry, answers: Answers, losses: Mapping[str, PairedLosses]) -> dict[str, Any]:
    """What is told of latents and of single questions, as far as it is asked for."""
    question, out = inquiry.question, {}
    if not question.latents and not question.questions:
        return out
    margins = inquiry.margins(answers, losses)

    def score(variants: Mapping[str, Variant]) -> dict[str, np.ndarray]:
        return {
            key: lost
            for some in inquiry.answers_in_turn(variants)
            for key, lost in margins_lost(margins.contrasts, inquiry.requests.owner, some).items()
        }

    if question.latents:
        out["latents"] = latents_record(
            inquiry.spliced,
            inquiry.documents,
            margins,
            inquiry.cuts,
            question.latents,
            score,
            question.level,
            inquiry.tell,
        )
    if question.questions:
        out["questions"] = _questions(inquiry, margins)
    return out


def _questions(inquiry: VariantInquiry, margins: MarginLosses) -> list[dict[str, Any]]:
    contrasts = {contrast.document: contrast for contrast in margins.contrasts}
    first = np.searchsorted(inquiry.requests.owner, np.arange(len(inquiry.documents) + 1))
    requests = [request for task in inquiry.tasks for instances in task.requests for request in instances]
    out = []
    for number in shown_questions(inquiry.question, inquiry.named, margins.lost):
        document, own = inquiry.documents[number], slice(first[number], first[number + 1])
        if number not in contrasts:
            head = {"task": document.task, "doc_id": document.doc_id}
            out.append({**head, "reason": f"Nothing is told of its tokens: {NO_MARGIN}."})
            continue
        queries = inquiry.requests.queries[own]
        out.append(question_record(inquiry.patched, document, contrasts[number], requests[own], queries))
    return out


def chosen_documents(question: Inquiry, documents: Sequence[PromptDocument]) -> np.ndarray:
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


def check_variant(question: Inquiry, name: str, spliced: Any) -> None:
    """Raises `UserError` for a variant without classes, for edits in the way, and for one that is run by itself."""
    if {*question.by} == {SITES} and len(spliced.variant.splices) < 2:
        raise UserError(f"--by site divides nothing: {name} is spliced in at one site.")
    for splice in spliced.variant.splices:
        question.check_edits(name, splice.edits)
    if not spliced.is_scored:
        raise UserError(f"where scores the variants of {name} in shared passes, and its model runs each by itself.")


def _variants(
    classes: Sequence[PlaceClass | DirectionClass], variant: Variant
) -> tuple[dict[str, Variant], list[dict[str, str]]]:
    """What is to be scored by key, the variant itself first, and the keys of each class by kind; equal ones once."""
    out, keys = {WHOLE: variant}, []
    random = variant.in_mode("random_error")
    for place in classes:
        patches = place.patches(variant, random)
        out |= {key: patched for key, patched in patches.values() if key not in out}
        keys.append({kind: key for kind, (key, _) in patches.items()})
    return out, keys
