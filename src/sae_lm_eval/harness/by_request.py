"""What is known of each request of each task, in all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Generic, TypeVar

from lm_eval.api.instance import Instance

from sae_lm_eval.runtime.processes import gathered

T = TypeVar("T")


class ByRequest(Generic[T]):
    """Values by task, and by document and number of the request."""

    def __init__(self) -> None:
        self._of: dict[str, dict[tuple[int | None, int], T]] = defaultdict(dict)

    def keep(self, requests: Sequence[Instance], values: Sequence[T]) -> None:
        """Those of this process's requests; one that was asked before counts as it is answered now."""
        keys = [(request.task_name, request.doc_id, request.idx) for request in requests]
        by_key = dict(zip(keys, values, strict=True))  # several processes repeat some
        for (task, document, number), value in gathered(list(by_key.items())):
            self._of[str(task)][document, number] = value

    def of_documents(self, task: str) -> dict[int | None, list[T]]:
        """The values of a task's requests by document, in the order of the requests."""
        out: dict[int | None, list[T]] = defaultdict(list)
        for document, number in sorted(self._of.get(task, {}), key=lambda key: key[1]):
            out[document].append(self._of[task][document, number])
        return dict(out)
