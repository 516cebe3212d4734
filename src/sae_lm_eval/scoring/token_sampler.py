"""Logits -> the next token of each text: the likeliest, or a draw that can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSampler:
    """How the next token is chosen: from `warped` logits (rows, vocabulary) with noise of `seed`, or the likeliest."""

    warped: Callable[[Tensor], Tensor] | None = None
    seed: int = 0

    def choose(self, logits: Tensor, keys: Sequence[bytes], steps: Sequence[int]) -> Tensor:
        """A token for each row of logits, (rows,); `keys` and `steps` say of each row for what its noise is drawn.

        argmax(logits + g) with Gumbel noise g is a draw from the softmax (Maddison, Tarlow & Minka 2014). The noise is
        that of the request and the step: it depends neither on what else is in the batch nor on the model.
        """
        if self.warped is not None:
            noise = [self._gumbel(key, step, logits.shape[-1]) for key, step in zip(keys, steps, strict=True)]
            logits = self.warped(logits) + torch.stack(noise).to(logits.device)
        return logits.argmax(-1)

    def _gumbel(self, key: bytes, step: int, size: int) -> Tensor:
        digest = hashlib.blake2b(b"%d %d %s" % (self.seed, step, key), digest_size=7).digest()
        return gumbel(size, torch.Generator().manual_seed(int.from_bytes(digest)))


def gumbel(size: int, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise (size,) on the CPU."""
    return -torch.empty(size).exponential_(generator=generator).log()
