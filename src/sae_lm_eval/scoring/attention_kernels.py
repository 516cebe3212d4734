"""Which of torch's kernels for attention run on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

OTHERS = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled")


@contextmanager
def attention_without_plans() -> Iterator[None]:
    """Inside the scope, torch does not take cuDNN's attention where it is allowed another.

    On Hopper GPUs torch prefers it, and it builds a plan for every new shape, which each batch of texts has. On an
    H100, 993 calls of attention took 8.1 of the 20.2 seconds of a first run.
    """
    kernels = torch.backends.cuda
    was_enabled = kernels.cudnn_sdp_enabled()
    kernels.enable_cudnn_sdp(was_enabled and not any(getattr(kernels, name)() for name in OTHERS))
    try:
        yield
    finally:
        kernels.enable_cudnn_sdp(was_enabled)
