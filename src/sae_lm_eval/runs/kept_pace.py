"""How quickly a run went, kept in its folder, by which `--plan` estimates the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_lm_eval.runtime.progress import Progress
from sae_lm_eval.runtime.run_files import PACE
from sae_lm_eval.runtime.run_folder import write_json
from sae_lm_eval.splicing.splice import Variant


class Counts(NamedTuple):
    """Tokens of all requests, those of them that were run, and how long that took."""

    requested_tokens: int
    tokens: int
    seconds: float


def counts_of(progress: Progress) -> Counts:
    return Counts(progress.requested_tokens, progress.tokens, progress.seconds)


def keep_pace(folder: Path, model: Any, variants: Sequence[Variant], before: Counts, after: Counts) -> None:
    """Write down the pace of a forked pass of `variants`, if anything was run in it."""
    from sae_lm_eval.runs.plan import cost_of

    ran, took = after.tokens - before.tokens, after.seconds - before.seconds
    if ran and took:
        rate = ran / took * cost_of(model, variants)
        tokens = after.requested_tokens - before.requested_tokens
        write_json(folder / PACE, {"tokens": tokens, "token_passes_per_second": rate})
