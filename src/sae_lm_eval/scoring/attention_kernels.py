"""Which of torch's kernels for attention run on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

OTHERS = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled")
_lock = threading.Lock()
_scopes: list[bool] = []  # that are open in the process, each with what the first found


@contextmanager
def attention_without_plans() -> Iterator[None]:
    """Inside the scope, torch does not take cuDNN's attention where it is allowed another.

    On Hopper GPUs torch prefers it, and it builds a plan for every new shape, which each batch of texts has. On an
    H100, 993 calls of attention took 8.1 of the 20.2 seconds of a first run. The setting is the process's: the last of
    several scopes, in whatever threads, puts it back.
    """
    kernels = torch.backends.cuda
    with _lock:
        _scopes.append(_scopes[0] if _scopes else kernels.cudnn_sdp_enabled())
        kernels.enable_cudnn_sdp(_scopes[0] and not any(getattr(kernels, name)() for name in OTHERS))
    try:
        yield
    finally:
        with _lock:
            was_enabled = _scopes.pop()
            if not _scopes:
                kernels.enable_cudnn_sdp(was_enabled)
