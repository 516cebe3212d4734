"""What became of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lm_eval.errors import UserError
from sae_lm_eval.runtime.processes import gathered
from sae_lm_eval.runtime.progress import Progress, duration
from sae_lm_eval.runtime.run_folder import added_names

if TYPE_CHECKING:
    from sae_lm_eval.report.findings import Findings


@dataclass(frozen=True)
class Outcome:
    """What became of a variant: its results are in `folder`, or `failed` says why there are none."""

    name: str
    folder: Path
    failed: str | None = None


@dataclass(frozen=True)
class Finished:
    """The outcomes of a run, the baseline's first, and what its processes ran of it.

    `requests` counts each request once for a model that it was answered for, `shared` those of them that were answered
    in the pass of another model or kept by an earlier run; `rate` is in tokens a second, None where none was run.
    """

    outcomes: tuple[Outcome, ...]
    requests: int = 0
    shared: int = 0
    rate: float | None = None
    continued: bool = False

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.failed)


def refuse_failed(finished: Finished, folder: Path) -> None:
    """Raise `UserError` where variants of a run in `folder` failed."""
    if finished.failed:
        raise UserError(
            f"{len(finished.failed)} of {len(finished.outcomes) - 1} variants failed; '{folder}' has the others. "
            + " ".join(f"{outcome.name}: {outcome.failed}" for outcome in finished.failed)
        )


def summary(finished: Finished, seconds: float) -> str:
    """What a run did, in a sentence or two."""
    done = len(finished.outcomes) - len(finished.failed)
    variants = len(finished.outcomes) - 1
    variants = f"{variants} variant{'s' if variants != 1 else ''}"
    text = f"{done} of {len(finished.outcomes)} models done (the baseline and {variants})"
    if not finished.requests:
        return f"{text}; nothing was left to run."
    kept = " or kept by an earlier run" if finished.continued else ""
    text += (
        f" in {duration(seconds)}: {finished.requests:,} answers, {finished.shared:,} of them from shared passes{kept}"
    )
    return f"{text}; {finished.rate:,.0f} tokens a second." if finished.rate else f"{text}."


def comparison_of(
    finished: Finished, folder: Path, *, categories: Mapping[str, Any] | None, docs_by: str | None
) -> Findings:
    """The variants of a run in `folder` with its baseline, under the names of their folders; options as for `compare`.

    What variants that came later did to the stars of the others is among its notes.
    """
    from sae_lm_eval.comparison.compare import with_notes
    from sae_lm_eval.comparison.multiplicity import stars_changed
    from sae_lm_eval.report.assemble import compare_tasks
    from sae_lm_eval.report.findings import findings
    from sae_lm_eval.results.results import read_results

    baseline, *others = (replace(read_results(outcome.folder), name=outcome.name) for outcome in finished.outcomes)
    comparison = compare_tasks(baseline, others, categories=categories, metrics="primary", docs_by=docs_by)
    changed = stars_changed(comparison.drops, added_names(folder), comparison.level) if len(comparison.drops) else None
    return findings(with_notes(comparison, changed))


def ran_by_all(progress: Progress) -> Finished:
    """What all processes ran."""
    ran = gathered([(progress.requests, progress.recalled_requests, progress.rate)])
    requests, shared, rates = zip(*ran, strict=True)
    rate = sum(filter(None, rates)) or None
    return Finished((), sum(requests), sum(shared), rate)
