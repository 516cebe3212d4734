"""Decoding as a gather: of a dictionary's latents a few in a hundred are active, and the others add nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# A gather pays below about one active latent in 32 on a CPU, whatever the widths (torch 2.13, widths 512 and 2,304,
# 4,096 and 16,384 latents), and below one in 100 on a GPU (H100, torch 2.11, width 2,304, 16,384 to 131,072 latents: it
# wins at one in 128 and loses at one in 64). There the product in bfloat16 is quicker than counting.
PAYS_BELOW = {"cpu": 1 / 32, "cuda": 1 / 100}
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class SparseDecoding(TorchFunctionMode):
    """Inside the scope, `activations @ decoder` is a gather where it pays, and the product that it was elsewhere."""

    def __init__(self, decoder: Tensor):
        super().__init__()
        self.decoder = decoder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in PRODUCTS and len(args) == 2 and args[1] is self.decoder and gather_pays(args[0], self.decoder):
            return gather(args[0], self.decoder)
        return func(*args, **(kwargs or {}))


def gather_pays(activations: Tensor, decoder: Tensor) -> bool:
    """Whether `gather` is quicker than the product: it is never tried in training."""
    if (
        activations.device.type not in PAYS_BELOW
        or activations.dtype != torch.float32
        or decoder.dtype != torch.float32
    ):
        return False
    if torch.is_grad_enabled() and (activations.requires_grad or decoder.requires_grad):
        return False
    return int(activations.count_nonzero()) < PAYS_BELOW[activations.device.type] * activations.numel()


@dataclass(frozen=True)
class Active:
    """The activations that are not 0 among those of `shape` (..., latents): whose `latents` they are and their
    `values`, position after position; `starts` is where each position's begin.
    """

    shape: torch.Size
    latents: Tensor
    values: Tensor
    starts: Tensor

    @classmethod
    def from_dense(cls, activations: Tensor) -> Active:
        rows = activations.reshape(-1, activations.shape[-1])
        row, latent = rows.nonzero(as_tuple=True)
        starts = torch.searchsorted(row, torch.arange(len(rows), device=rows.device))
        return cls(activations.shape[:-1], latent, rows[row, latent], starts)

    def sums(self, rows: Tensor, place: Tensor) -> Tensor:
        """What each position's activations make of `rows` (any, width) of a decoder, (..., width); `place` says which
        of them is that of each activation.
        """
        # embedding_bag adds up in the dtype of its weights, of which half precision would lose digits.
        wide = torch.promote_types(self.values.dtype, torch.float32)
        values, rows = self.values.to(wide), rows.to(self.values.device, wide)
        out = nn.functional.embedding_bag(place, rows, self.starts, mode="sum", per_sample_weights=values)
        return out.unflatten(0, self.shape)


def gather(activations: Tensor, decoder: Tensor) -> Tensor:
    """`activations @ decoder`, (..., latents) by (latents, width), from the latents that are not 0 alone."""
    active = Active.from_dense(activations)
    return active.sums(decoder, active.latents)
