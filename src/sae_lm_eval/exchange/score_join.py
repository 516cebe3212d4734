"""Scores of dictionaries beside what the same dictionaries cost as splices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange.dictionary_names import DictionaryName
from sae_lm_eval.exchange.rank_correlation import RankCorrelation, rank_correlation
from sae_lm_eval.exchange.score_files import some_of
from sae_lm_eval.exchange.scores import DictionaryScore, ScoreKind, ScoreSet
from sae_lm_eval.report.provenance import dictionary_of
from sae_lm_eval.report.sweep_settings import Setting, drop_of, frontier, is_single, singles
from sae_lm_eval.results.results import Results


@dataclass(frozen=True)
class CostAxis:
    """What a score is held against: heading and unit, a variant's value with its bounds, and which way is better."""

    heading: str
    unit: str
    value: Callable[[Setting], float | None]
    bounds: Callable[[Setting], tuple[float | None, float | None]]
    higher_is_better: bool = False
    logarithmic: bool = False


def _drop_bounds(setting: Setting) -> tuple[float | None, float | None]:
    return (setting.drop.low, setting.drop.high) if setting.drop else (None, None)


def _compute_bounds(setting: Setting) -> tuple[float | None, float | None]:
    compute = setting.fidelity.get("effective_compute")
    return (compute.low, compute.high) if compute else (None, None)


def _positive(metric: str) -> Callable[[Setting], float | None]:
    """A metric that is drawn on a logarithmic axis."""
    return lambda setting: value if (value := setting.value(metric)) is not None and value > 0 else None


AXES = (
    CostAxis("effective compute", "fraction", _positive("effective_compute"), _compute_bounds, True, True),
    CostAxis("drop", "percentage points", drop_of, _drop_bounds),
    CostAxis("L0", "active latents per token", _positive("l0"), lambda _: (None, None), logarithmic=True),
)


@dataclass(frozen=True)
class ScoredVariant:
    """A variant with the score of its dictionary."""

    setting: Setting
    score: float
    file: str


@dataclass(frozen=True)
class JoinedScore:
    """One score of the variants that have it, a variant a dictionary."""

    kind: ScoreKind
    scored: tuple[ScoredVariant, ...]

    def on(self, axis: CostAxis) -> list[tuple[ScoredVariant, float]]:
        """The variants for which the axis has a number, with that."""
        return [(variant, value) for variant in self.scored if (value := axis.value(variant.setting)) is not None]

    def correlation(self, axis: CostAxis) -> RankCorrelation:
        """Of the score with the axis, each as it is measured, whichever way is better."""
        points = self.on(axis)
        x, y = [value for _, value in points], [variant.score for variant, _ in points]
        return rank_correlation(x, y, (axis.heading, "score"))

    def frontier(self, axis: CostAxis) -> list[tuple[ScoredVariant, float]]:
        """The variants that no other beats: is at least as good by score and axis, and better by one."""
        points = self.on(axis)
        signs = -1 if axis.higher_is_better else 1, -1 if self.kind.higher_is_better else 1
        return [
            points[at] for at in frontier([(signs[0] * value, signs[1] * variant.score) for variant, value in points])
        ]


@dataclass(frozen=True)
class Joined:
    """The scores that have a variant, and in words what has no partner."""

    scores: tuple[JoinedScore, ...]
    notes: tuple[str, ...]


def join_scores(scores: ScoreSet, chosen: Sequence[Setting]) -> Joined:
    """Each score with the variants, on release and id of the dictionary.

    Variants are reconstructions by one dictionary as it is; of several with the same dictionary the first stands for
    it. Raises `UserError` where no score has a variant.
    """
    alone = singles(chosen)
    by_name: dict[DictionaryName, Setting] = {}
    again: list[str] = []
    for setting in alone:
        name = DictionaryName.of_spec(setting.dictionary)
        if by_name.setdefault(name, setting) is not setting:
            again.append(f"{setting.name} (by {by_name[name].name})")
    joined, scored_names = [], set[DictionaryName]()
    unclear: dict[str, None] = {}
    for kind, kind_scores in scores.by_kind().items():
        partners, reasons = partners_of(kind_scores, list(by_name))
        unclear |= dict.fromkeys(reasons)
        if partners:
            scored_names |= partners.keys()
            scored = (ScoredVariant(by_name[name], score.value, score.file) for name, score in partners.items())
            joined.append(JoinedScore(kind, tuple(scored)))
    missed = list(
        dict.fromkeys(score.dictionary for score in scores.scores if not any(map(score.dictionary.fits, by_name)))
    )
    if not joined and unclear:
        raise UserError(f"No score can be joined to a variant. {' '.join(unclear)}")
    if not joined:
        _refuse(missed, list(by_name))
    notes = [*scores.notes, *unclear, *_not_joined(missed, by_name, scored_names)]
    if again:
        notes.append(f"One variant stands for each dictionary that was scored; left out are {some_of(again)}.")
    return Joined(tuple(joined), tuple(notes))


def partners_of(
    scores: Sequence[DictionaryScore], names: Sequence[DictionaryName]
) -> tuple[dict[DictionaryName, DictionaryScore], list[str]]:
    """The score of each dictionary that has one, and in words those of which revisions leave it open whose they are.

    The same revision comes before one that is not known.
    """
    partners: dict[DictionaryName, DictionaryScore] = {}
    unclear = []
    for name in names:
        fitting = [score for score in scores if name.fits(score.dictionary)]
        chosen = [score for score in fitting if score.dictionary == name] or fitting
        if len(chosen) > 1:
            unclear.append(f"{name} has scores of several revisions: say in its spec which one it is.")
        elif chosen and chosen[0].dictionary != name:
            theirs = chosen[0].dictionary
            if theirs not in names and sum(map(theirs.fits, names)) == 1:
                partners[name] = chosen[0]
            elif theirs not in names:
                unclear.append(f"The score of {theirs} fits variants of several revisions: name one with it.")
        elif chosen:
            partners[name] = chosen[0]
    return partners, unclear


def check_joins(scores: ScoreSet, variants: Sequence[Results]) -> None:
    """Before anything is compared. Raises `UserError` where no score is of a dictionary of the variants."""
    ours = [DictionaryName.of_spec(dictionary_of(run)) for run in variants if is_single(run)]
    theirs = list(dict.fromkeys(score.dictionary for score in scores.scores))
    if not any(own.fits(other) for own in ours for other in theirs):
        _refuse(theirs, ours)


def _refuse(missed: Sequence[DictionaryName], ours: Sequence[DictionaryName]) -> None:
    theirs = some_of([str(name) for name in missed], 3)
    if not ours:
        raise UserError("No variant is a reconstruction by one dictionary as it is, so no score can be joined to one.")
    raise UserError(
        f"No score can be joined to a variant: the scores are of {theirs}; the variants of "
        f"{some_of([str(name) for name in ours], 3)}. Both are compared by release and id."
    )


def _not_joined(
    missed: Sequence[DictionaryName], by_name: Mapping[DictionaryName, Setting], scored_names: set[DictionaryName]
) -> list[str]:
    notes = []
    if missed:
        notes.append(f"Scored, but no variant here: {some_of([str(name) for name in missed])}.")
    unscored = [setting.name for name, setting in by_name.items() if name not in scored_names]
    if unscored:
        notes.append(f"Variants without a score: {some_of(unscored)}.")
    return notes


def axes_of(joined: Sequence[JoinedScore]) -> list[CostAxis]:
    """The axes on which any variant with a score has a number."""
    return [axis for axis in AXES if any(score.on(axis) for score in joined)]
