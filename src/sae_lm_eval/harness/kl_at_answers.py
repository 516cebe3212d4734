"""How far a variant's predictions moved at the answers of each task: the mean of KL(baseline || variant)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from sae_lm_eval.runtime.processes import gathered


class Divergence:
    """Sums of KL over the scored tokens of each document of each task."""

    def __init__(self) -> None:
        # [KL in nats, tokens] by task, and by document and number of the request; None where the KL is not known.
        self._of: dict[str, dict[tuple[int | None, int], np.ndarray | None]] = defaultdict(dict)

    def note(self, requests: Sequence[Instance], kl: Sequence[tuple[float, int]] | None) -> None:
        """`kl` holds for each request the sum over its scored tokens, in nats, and their number.

        A request that was asked before counts as it is answered now.
        """
        asked = [(request.task_name, request.doc_id, request.idx) for request in requests]
        found = dict(zip(asked, kl or [None] * len(requests), strict=True))  # several processes repeat some
        for (task, document, number), of in gathered(list(found.items())):
            self._of[str(task)][document, number] = None if of is None else np.array(of)

    def by_task(self) -> dict[str, dict[str, Any]]:
        """For each task the mean KL per scored token in nats, and its standard error by documents.

        The mean is a ratio of sums over documents, and its error that of a ratio estimator (Cochran 1977,
        Sampling Techniques, section 6.4).
        """
        out: dict[str, dict[str, Any]] = {}
        for task, answers in self._of.items():
            sums: dict[int | None, np.ndarray] = {}
            for (document, _), of in answers.items():
                if of is not None:
                    sums[document] = sums.get(document, np.zeros(2)) + of
            if not sums or any(of is None for of in answers.values()):
                continue
            kl, tokens = np.array([*sums.values()]).T
            if not tokens.any():
                continue
            mean, n = kl.sum() / tokens.sum(), len(sums)
            spread = np.sqrt(n / (n - 1) * ((kl - mean * tokens) ** 2).sum()) / tokens.sum() if n > 1 else None
            out[task] = {
                "kl": float(mean),
                "stderr": None if spread is None else float(spread),
                "positions": int(tokens.sum()),
                "documents": n,
            }
        return out
