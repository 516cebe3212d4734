"""How far a model's own scores move where its arithmetic is rounded otherwise.

Sharing changes the order in which numbers are added, and with it their last bits. In bfloat16 that decides which
latents a dictionary keeps, so that two scores may be far apart and neither is wrong. The model itself tells how far.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SPREADS = 3  # how many times as far sharing may move a score as rounding does
# Of products of float32 matrices on a GPU, where torch is allowed to round their factors (TF32 has ten bits).
UNITS = {"highest": torch.finfo(torch.float32).eps, "high": 2.0**-10, "medium": torch.finfo(torch.bfloat16).eps}


@contextmanager
def rounded_otherwise(model: Any) -> Iterator[None]:
    """Inside the scope, each number of an embedding is a unit in the last place above or below what it was.

    Which way is drawn by position: the same in each sequence and on every device.
    """

    def moved(_module: Any, _args: Any, out: Tensor) -> Tensor:
        signs = torch.randint(2, out.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
        return out * (1 + signs * _unit(out)).to(out)

    handle = model.get_input_embeddings().register_forward_hook(moved)
    try:
        yield
    finally:
        handle.remove()


def _unit(states: Tensor) -> float:
    """Of the last place of 1, in the arithmetic that `states` go through here."""
    device, units = states.device.type, [torch.finfo(states.dtype).eps]
    if torch.is_autocast_enabled(device):
        units.append(torch.finfo(torch.get_autocast_dtype(device)).eps)
    if device == "cuda" and states.dtype == torch.float32:
        units.append(UNITS[torch.get_float32_matmul_precision()])
    return max(units)


def typical(off: Float[np.ndarray, "queries models targets"]) -> Float[np.ndarray, " models"]:
    """What most differences do not exceed.

    Most, since a dictionary that keeps its k largest latents may round to others.
    """
    return np.quantile(off, 0.7, axis=(0, 2))
