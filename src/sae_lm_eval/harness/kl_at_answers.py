"""How far a variant's predictions moved at the answers of each task: the mean of KL(baseline || variant)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from sae_lm_eval.comparison.resampling import ratio_of_sums
from sae_lm_eval.harness.by_request import ByRequest


class Divergence(ByRequest[tuple[float, int] | None]):
    """Of each request the KL over its scored tokens, in nats, and their number; None where the KL is not known."""

    def note(self, requests: Sequence[Instance], kl: Sequence[tuple[float, int]] | None) -> None:
        """`kl` holds for each request the sum over its scored tokens, in nats, and their number."""
        self.keep(requests, kl or [None] * len(requests))

    def by_task(self) -> dict[str, dict[str, Any]]:
        """For each task the mean KL per scored token in nats, and its standard error by documents.

        The mean is a ratio of sums over documents; see `comparison.resampling.ratio_of_sums` for its error.
        """
        out: dict[str, dict[str, Any]] = {}
        for task, answers in self._of.items():
            sums: dict[int | None, np.ndarray] = {}
            for (document, _), divergence in answers.items():
                if divergence is not None:
                    sums[document] = sums.get(document, np.zeros(2)) + divergence
            if not sums or any(divergence is None for divergence in answers.values()):
                continue
            kl, tokens = np.array([*sums.values()]).T
            if not tokens.any():
                continue
            n = len(sums)
            stderr = math.sqrt(ratio_of_sums(kl, tokens)[1]) if n > 1 else None
            out[task] = {
                "kl": float(kl.sum() / tokens.sum()),
                "stderr": stderr,
                "positions": int(tokens.sum()),
                "documents": n,
            }
        return out
