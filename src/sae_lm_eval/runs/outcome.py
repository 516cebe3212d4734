"""What became of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae_lm_eval.runtime.progress import duration


@dataclass(frozen=True)
class Outcome:
    """What became of a variant: its results are in `folder`, or `failed` says why there are none."""

    name: str
    folder: Path
    failed: str | None = None


@dataclass(frozen=True)
class Finished:
    """The outcomes of a run, the baseline's first, and what its processes ran of it.

    `requests` counts each request once for a pass or variant that it was answered for, `recalled` those of them that
    were answered before; `rate` is in tokens a second, None where none was run.
    """

    outcomes: tuple[Outcome, ...]
    requests: int = 0
    recalled: int = 0
    rate: float | None = None

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.failed)


def summary(finished: Finished, seconds: float) -> str:
    """What a run did, in a sentence or two."""
    done = len(finished.outcomes) - len(finished.failed)
    text = f"{done} of {len(finished.outcomes)} models done (the baseline and {len(finished.outcomes) - 1} variants)"
    if not finished.requests:
        return f"{text}; nothing was left to run."
    text += f" in {duration(seconds)}: {finished.requests:,} answers, {finished.recalled:,} of them recalled"
    return f"{text}; {finished.rate:,.0f} tokens a second." if finished.rate else f"{text}."
