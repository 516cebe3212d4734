"""Adapters of one model that are answered from the same forked passes."""

from __future__ import annotations

from collections.abc import Iterable

from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.progress import Progress
from sae_lm_eval.scoring.spliced_model import Group


def joined(
    baseline: SaeHFLM,
    variants: Iterable[SaeHFLM],
    journal: Journal | None = None,
    *,
    bos: bool | None = None,
    progress: Progress | None = None,
) -> list[SaeHFLM]:
    """A `SaeHFLM` without dictionaries and variants of it, as adapters that are answered from the same forked passes.

    All are asked with a BOS token where one of the dictionaries was trained behind one, or as `bos` says. Answers are
    kept in `journal`, from which the same models answer in another process; `progress` is told of them.
    """
    family = [baseline, *variants]
    if bos is None:
        bos = any(lm.spliced.tokens.wants_bos for lm in family)
    group = Group(baseline_first=True, journal=journal, progress=progress)
    members = [lm.spliced.in_group(group, wants_bos=bos) for lm in family]
    group.shared()  # whatever it warns of comes first
    return [lm.answering_as(member) for lm, member in zip(family, members, strict=True)]
