"""The memory of the host is used up: a failure of the run, and of no variant."""

from __future__ import annotations

import errno

from sae_lm_eval.errors import UserError

# What torch and the system say of it in a RuntimeError or an ImportError.
TOLD_BY_OTHERS = (
    *("DefaultCPUAllocator: ", "not enough memory: you tried to allocate"),
    *("Cannot allocate memory", "can't start new thread", "failed to map segment from shared object"),
)

TOLD = (
    "The memory of this machine does not suffice. Give a smaller --batch_size, fewer or smaller dictionaries at once "
    "(--memory), or more memory; the same command continues with what was answered."
)


class HostMemoryError(UserError):
    """What was under way needs more memory than the host gives."""


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raise `HostMemoryError` where that is what an error says."""
    if is_out_of_memory(error):
        raise HostMemoryError(TOLD) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host had no memory left, as Python, torch or the system tells it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | HostMemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(words in str(error) for words in TOLD_BY_OTHERS)
    )
