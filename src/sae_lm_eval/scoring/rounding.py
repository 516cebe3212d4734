"""How far a model's own scores move where its arithmetic is rounded otherwise.

Sharing changes the order in which numbers are added, and with it their last bits. In bfloat16 that decides which
latents a dictionary keeps, so that two scores may be far apart and neither is wrong. The model itself tells how far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory

logger = logger_of(__name__)

SPREADS = 3  # how many times as far sharing may move a score as rounding does
TF32 = 2.0**-10  # the unit of what a GPU may round the factors of a product in float32 to


@contextmanager
def rounded_otherwise(model: Any) -> Iterator[None]:
    """Inside the scope, each number of an embedding is one or two units in the last place above or below what it was.

    Which way is drawn by position: the same in each sequence and on every device.
    """

    def moved(_module: Any, _args: Any, out: Tensor) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed(0)
        signs = torch.randint(2, out.shape[1:], generator=generator, device="cpu").double() * 2 - 1
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
    if device == "cuda" and states.dtype == torch.float32 and _is_tf32_allowed():
        units.append(TF32)
    return max(units)


def _is_tf32_allowed() -> bool:
    # From 2.9 on torch has a setting of its own for it, after which it refuses to tell by the former name.
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return torch.get_float32_matmul_precision() != "highest" if precision is None else precision == "tf32"


Differences = Float[np.ndarray, "queries models targets"]


def is_rounding(off: Differences, tolerance: float, moved: Callable[[], Differences]) -> bool:
    """Whether sharing changes scores no further than rounding does.

    `off` is how far they are from the plain ones, `moved` how far rounding moves these; nan where nothing was scored.
    What is beyond `tolerance`, in nats, may be `SPREADS` times as far as that: most scores of each model, and the
    farthest of all. Most, since one other latent moves a score by as much as all else together.
    """
    if np.nanmax(off, initial=0) <= tolerance:
        return True
    try:
        spread = moved()
    except UserError:
        raise
    except Exception as error:  # whatever an architecture does not bear
        raise_if_out_of_memory(error)
        logger.debug("How far rounding moves the scores cannot be measured: %r", error)
        return False
    if not np.nanmax(off) <= max(tolerance, SPREADS * np.nanmax(spread)):
        return False
    scored = ~np.isnan(off).all(axis=(0, 2))
    most, most_moved = (np.nanquantile(apart[:, scored], 0.7, axis=(0, 2)) for apart in (off, spread))
    return bool((most <= np.maximum(tolerance, SPREADS * most_moved)).all())
