"""How far the texts that a variant writes go with the baseline's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from sae_lm_eval.runtime.processes import gathered
from sae_lm_eval.scoring.parting import parting, share_together


class PartedTexts:
    """The token at which each text of each task is another than the baseline's."""

    def __init__(self) -> None:
        # (number of the token, from 1 on, and whether they differ there) by task, and by document and number of request
        self._of: dict[str, dict[tuple[int | None, int], tuple[int, bool]]] = defaultdict(dict)

    def note(self, requests: Sequence[Instance], texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """`texts` are for each request the baseline's tokens and the variant's."""
        found = {}
        for request, (baseline, ids) in zip(requests, texts, strict=True):
            index = parting(baseline, ids)
            time = min(len(baseline), len(ids)) if index is None else index + 1
            found[request.task_name, request.doc_id, request.idx] = time, index is not None
        for (task, document, number), of in gathered(list(found.items())):
            self._of[str(task)][document, number] = of

    def by_task(self) -> dict[str, dict[str, Any]]:
        """For each task the texts, those that part, and the share still together behind 1, 2, 4, ... tokens."""
        out: dict[str, dict[str, Any]] = {}
        for task, texts in self._of.items():
            times, has_parted = zip(*texts.values(), strict=True)
            together = {str(time): share for time, share in share_together(times, has_parted).items()}
            out[task] = {"texts": len(texts), "parted": sum(has_parted), "together": together}
        return out
