"""How far a variant's next-token distribution is from the baseline's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Predicted:
    """Log-probabilities in nats, of a `baseline` too where there is one to compare with.

    What several measures need of them is computed once.
    """

    def __init__(self, logprob: Float[Tensor, "*batch vocabulary"], baseline: Predicted | None = None):
        self.logprob = logprob
        self._baseline = baseline

    @property
    def baseline(self) -> Predicted:
        assert self._baseline is not None
        return self._baseline

    @cached_property
    def probability(self) -> Float[Tensor, "*batch vocabulary"]:
        return self.logprob.exp()

    @cached_property
    def likeliest(self) -> Int[Tensor, "*batch"]:
        return self.logprob.argmax(-1)

    @cached_property
    def lost(self) -> Float[Tensor, "*batch vocabulary"]:
        return self.baseline.logprob - self.logprob


def kl(variant: Predicted) -> Float[Tensor, "*batch"]:
    """KL(baseline || variant) = sum of p_baseline (log p_baseline - log p_variant), in nats; 0 log 0 is 0."""
    return _expected(variant.baseline, variant.lost)


def kl_reverse(variant: Predicted) -> Float[Tensor, "*batch"]:
    """KL(variant || baseline) in nats; 0 log 0 is 0."""
    return -_expected(variant, variant.lost)


def _expected(under: Predicted, lost: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch"]:
    """The sum of p `lost`, of tokens that are not impossible: those with logits of -inf, as some models mask them."""
    if lost.device.type == "cpu":  # elsewhere to ask is to wait
        sums = torch.linalg.vecdot(under.probability, lost)
        if not bool(sums.isnan().any()):
            return sums
    return torch.where(under.logprob == -torch.inf, 0.0, under.probability * lost).sum(-1)


def same_top_token(variant: Predicted) -> Float[Tensor, "*batch"]:
    """1 where both put the same token first, else 0."""
    return (variant.baseline.likeliest == variant.likeliest).to(variant.logprob.dtype)


MEASURES: dict[str, Callable[[Predicted], Tensor]] = {"kl": kl, "kl_reverse": kl_reverse, "agreement": same_top_token}
