"""How long the baseline alone takes for what a run asks, by about ten seconds of that work."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sae_lm_eval.runs.model_pool import LoadedSweep
from sae_lm_eval.runs.turns import KINDS
from sae_lm_eval.runtime.time_left import REQUESTS

SECONDS = 10.0
FIRST = 16  # requests of the first part, before which nothing is warm
NEIGHBOURS = 16  # requests of one stretch: neighbours share their prompts' beginnings


def seconds_of_baseline(
    loaded: LoadedSweep, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
) -> dict[str, float]:
    """By kind (see `time_left`) the seconds that the baseline would take for all of it, by a part that takes `seconds`.

    Raises `UserError` where the data of a task cannot be had.
    """
    by_type: dict[str, list[Any]] = defaultdict(list)
    for task in loaded.tasks["tasks"].values():
        loaded.build_requests(task)
        for instance in task.instances:
            by_type[instance.request_type].append(instance)
    out: dict[str, float] = defaultdict(float)
    for request_type, instances in by_type.items():
        answer = partial(getattr(loaded.baseline, request_type), disable_tqdm=True)
        out[KINDS.get(request_type, REQUESTS)] += extrapolated(instances, answer, seconds / len(by_type), clock)
    return dict(out)


def extrapolated(
    instances: Sequence[Any], answer: Callable[[list[Any]], object], seconds: float, clock: Callable[[], float]
) -> float:
    """Seconds that all `instances` would take, by larger and larger parts of them until `seconds` have gone by."""
    began, size = clock(), FIRST
    while True:
        part = evenly_spaced(instances, size)
        since = clock()
        answer(part)
        took = clock() - since
        # Where twice as many would take longer than is left, this was the last part.
        if size >= len(instances) or clock() - began + 2 * took > seconds:
            return took * sum(map(letters, instances)) / max(1, sum(map(letters, part)))
        size *= 2


def evenly_spaced(instances: Sequence[Any], size: int) -> list[Any]:
    """About `size` of them, in stretches of neighbours that lie evenly apart."""
    if size >= len(instances):
        return list(instances)
    stretches = max(1, size // NEIGHBOURS)
    starts = [number * len(instances) // stretches for number in range(stretches)]
    return [instance for start in starts for instance in instances[start : start + NEIGHBOURS]]


def letters(instance: Any) -> int:
    """Of the texts that a request holds: what it takes is about as much."""
    return sum(len(part) for part in instance.args if isinstance(part, str))
