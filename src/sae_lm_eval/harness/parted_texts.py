"""How far the texts that a variant writes go with the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from sae_lm_eval.harness.by_request import ByRequest
from sae_lm_eval.scoring.parting import parting, share_together


class PartedTexts(ByRequest[tuple[int, bool]]):
    """Of each text the number of the token, from 1 on, at which it is another than the baseline's, and True; or the
    number of its last token, and False.
    """

    def note(self, requests: Sequence[Instance], texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """`texts` are for each request the baseline's tokens and the variant's."""
        indices = [parting(baseline, ids) for baseline, ids in texts]
        lengths = [min(len(baseline), len(ids)) for baseline, ids in texts]
        parted = [(n, False) if i is None else (i + 1, True) for i, n in zip(indices, lengths, strict=True)]
        self.keep(requests, parted)

    def by_task(self) -> dict[str, dict[str, Any]]:
        """For each task the texts, those that part, and the share still together behind 1, 2, 4, ... tokens."""
        out: dict[str, dict[str, Any]] = {}
        for task, texts in self._of.items():
            times, has_parted = zip(*texts.values(), strict=True)
            together = {str(time): share for time, share in share_together(times, has_parted).items()}
            out[task] = {"texts": len(texts), "parted": sum(has_parted), "together": together}
        return out
