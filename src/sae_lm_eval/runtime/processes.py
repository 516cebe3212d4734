"""Several processes of one run, as `accelerate launch` starts them: the first says what all go by, and writes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
TIMEOUT = timedelta(weeks=52)  # lm_eval's own, for a process that waits for others


def is_distributed() -> bool:
    """Whether this process is one of several. Imports nothing."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Of this process, 0 being the first."""
    return _joined().process_index if is_distributed() else 0


def agreed(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in every process; what it raises there, they raise too."""
    if not is_distributed():
        return make()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:  # which the others would wait for in vain
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def gathered(items: list[T]) -> list[T]:
    """Those of all processes, in every process; lm_eval has joined them when the model is loaded."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    return gather_object(items) if PartialState().num_processes > 1 else items


@functools.cache
def _joined() -> Accelerator:
    """This process, once it has joined the others."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)])
