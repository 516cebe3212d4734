"""Which dictionaries look at other positions than the one they reconstruct."""

from __future__ import annotations

from torch import nn


def attends_over_positions(module: nn.Module) -> bool:
    """Whether `module` holds attention or recurrence, so that what it gives at a position depends on earlier ones.

    It is told by the parts that it is made of, whatever its architecture is called.
    """
    return any(
        isinstance(part, nn.MultiheadAttention | nn.RNNBase) or "attention" in type(part).__name__.lower()
        for part in module.modules()
    )
