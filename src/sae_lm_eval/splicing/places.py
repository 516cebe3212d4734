"""Where a variant is spliced in: at which positions, by their labels or the size of the error, and at which sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """A class of places; the dictionaries are spliced in there alone, or with `outside` everywhere else.

    A condition that is None holds everywhere. `labels` are those of the queries, 0 where these have none; `hooks` are
    the names of the sites that are written. `norms` are by hook the bounds of the norm of the edit, the lower one
    included.
    """

    labels: frozenset[int] | None = None
    norms: Mapping[str, tuple[float, float]] | None = None
    hooks: frozenset[str] | None = None
    outside: bool = False

    def kept(
        self,
        hook: str,
        labels: Int[Tensor, "batch positions"] | None,
        y: Float[Tensor, "batch positions d_out"],
        new: Float[Tensor, "batch positions d_out"],
    ) -> Bool[Tensor, "batch positions 1"]:
        """Which positions keep `y` in the place of `new` at the site that is called `hook`."""
        inside = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        if self.labels is not None:
            given = torch.zeros_like(inside, dtype=torch.long) if labels is None else labels.to(y.device)
            inside &= torch.isin(given, torch.tensor(sorted(self.labels), device=y.device))
        if self.norms is not None:
            low, high = self.norms[hook]
            norm = error_norm(y, new)
            inside &= (norm >= low) & (norm < high)
        if self.hooks is not None and hook not in self.hooks:
            inside = torch.zeros_like(inside)
        return (inside if self.outside else ~inside)[..., None]


def error_norm(
    y: Float[Tensor, "*positions d_out"], new: Float[Tensor, "*positions d_out"]
) -> Float[Tensor, "*positions"]:
    """Length of y - new at each position."""
    return (y.float() - new.float()).norm(dim=-1)
