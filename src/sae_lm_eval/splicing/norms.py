"""What a norm does, measured on vectors: neither its class nor the adapters around it say so."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from sae_lm_eval.errors import UserError

LOUD = 1e3  # times a probe, so that eps adds nothing to its variance
MEANS = (0.0, 1.0, -2.0, 3.0, 0.5, -1.0)  # of the probes, whose deviation is 1
TOLERANCE = 0.03  # above the rounding of bfloat16, and far below what another kind of norm leaves


@dataclass(frozen=True)
class Normalisation:
    """A norm before its gain and bias, (x - mean or x) / sqrt(the variance or the mean square + eps).

    `centres` is whether the mean is subtracted, `by_deviation` whether the divisor is the standard deviation rather
    than the root mean square. LayerNorm does both, RMSNorm neither.
    """

    centres: bool
    by_deviation: bool
    eps: float = 0.0

    def __call__(self, x: Float[Tensor, "*batch width"]) -> Float32[Tensor, "*batch width"]:
        x = x.float()
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred if self.by_deviation else x).pow(2).mean(-1, keepdim=True)
        return (centred if self.centres else x) * torch.rsqrt(spread + self.eps)


KINDS = tuple(Normalisation(*flags) for flags in itertools.product((True, False), repeat=2))


@torch.no_grad()
def measured(norm: nn.Module, width: int) -> Normalisation:
    """What `norm` does along its last axis of `width`, whatever its gain and bias.

    Raises `UserError` where it neither is nor resembles (x - mean or x) / (deviation or root mean square).
    """
    normalise, probes = _applied(norm), _probes(width)
    loud = normalise(probes * LOUD)
    for kind in KINDS:
        own = kind(probes).double()
        gain, bias = _line(own, loud)
        if (gain * own + bias - loud).norm() < TOLERANCE * (loud - loud.mean(0)).norm():
            return Normalisation(kind.centres, kind.by_deviation, _eps(normalise, probes[:1], gain * own[:1], bias))
    raise UserError(
        f"{type(norm).__name__} divides by neither the standard deviation nor the root mean square of what it reads: "
        f"it has no hook_normalized."
    )


@torch.no_grad()
def subtracts_mean(norm: nn.Module, width: int) -> bool:
    """Whether `norm` gives the same for x and for x plus a constant."""
    normalise, probes = _applied(norm), _probes(width)[:1]
    unmoved, moved = normalise(probes), normalise(probes + 3)
    return bool((unmoved - moved).norm() < TOLERANCE * unmoved.norm())


@torch.no_grad()
def of_nothing(norm: nn.Module, width: int) -> Float64[Tensor, " width"]:
    """What `norm` makes of zeros: its bias."""
    return _applied(norm)(torch.zeros(1, width))[0]


def _probes(width: int) -> Float32[Tensor, "probes width"]:
    x = torch.randn(len(MEANS), width, generator=torch.Generator(device="cpu").manual_seed(0), device="cpu")
    return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0) + torch.tensor(MEANS, device="cpu")[
        :, None
    ]


def _line(
    x: Float64[Tensor, "probes width"], y: Float64[Tensor, "probes width"]
) -> tuple[Float64[Tensor, " width"], Float64[Tensor, " width"]]:
    """The gain and the bias by which `y` is made of `x`, by least squares."""
    dx, dy = x - x.mean(0), y - y.mean(0)
    gain = (dx * dy).sum(0) / dx.pow(2).sum(0)
    return gain, y.mean(0) - gain * x.mean(0)


def _eps(normalise: Callable[[Tensor], Tensor], probe: Tensor, loud: Tensor, bias: Tensor) -> float:
    """From how much less than `loud` a quiet probe of deviation and root mean square 1 gives."""
    eps, size = 0.0, 1e-3
    for _ in range(2):  # it shows best where the variance is about as large
        ratio = float(((normalise(probe * size) - bias) * loud).sum() / loud.pow(2).sum())
        eps = size**2 * max(0.0, 1 / ratio**2 - 1) if ratio > 0 else 0.0
        size = min(1.0, max(1e-4, eps**0.5))
    return eps


def _applied(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """`norm` on rows of the CPU, in the dtype that it has, with no hook of its own called; float64."""
    if any(weight.is_meta for weight in norm.parameters()) and not _is_offloaded(norm):
        norm = _with_values(norm)
    like = next((weight for weight in norm.parameters() if weight.is_floating_point()), torch.zeros(()))
    device = "cpu" if like.is_meta else like.device
    return lambda x: norm.forward(x.to(device, like.dtype)).to("cpu", torch.float64)


def _is_offloaded(norm: nn.Module) -> bool:
    """Whether accelerate fetches its weights when it is called."""
    return any(hasattr(module, "_hf_hook") for module in norm.modules())


def _with_values(norm: nn.Module) -> nn.Module:
    """A norm of shapes alone, with some gain and bias."""
    filled = copy.deepcopy(norm).to_empty(device="cpu")
    generator = torch.Generator(device="cpu").manual_seed(0)
    for weight in filled.parameters():
        weight.copy_(0.5 + torch.rand(weight.shape, generator=generator, device="cpu"))
    return filled
