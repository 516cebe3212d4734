"""Matrices (d_out, d_in) -> quantised, pruned, of low rank, noised. Each gives the dtype that it is given."""

from __future__ import annotations

import zlib

import torch
from jaxtyping import Float
from torch import Tensor


def quantized(weight: Float[Tensor, "d_out d_in"], bits: int, group: int = 0) -> Float[Tensor, "d_out d_in"]:
    """Rounded to the nearest of 2^bits - 1 levels that are even about 0, and back: s round(w / s), in float32.

    s = max|w| / (2^(bits-1) - 1) over each row, an output channel, or over `group` weights of it that lie together.
    Symmetric absmax quantisation (Dettmers et al. 2022, arXiv:2208.07339, section 2.1).
    """
    rows = weight.float()
    width = rows.shape[1]
    size = group or width
    padded = torch.nn.functional.pad(rows, (0, -width % size)).unflatten(1, (-1, size))
    step = padded.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    levels = torch.where(step > 0, (padded / step).round(), padded)
    return (levels * step).flatten(1)[:, :width].to(weight.dtype)


# The 16 codes of 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314, appendix E), for weights of at most 1.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def normal_float(weight: Float[Tensor, "d_out d_in"], block: int = 64) -> Float[Tensor, "d_out d_in"]:
    """Each weight the nearest of `NF4` times max|w| of its block, in float32.

    Blocks are `block` weights that lie together, row by row and on into the next, as bitsandbytes has them; their
    maxima are not quantised in turn.
    """
    flat = weight.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).unflatten(0, (-1, block))
    most = blocks.abs().amax(-1, keepdim=True)
    codes = torch.tensor(NF4, device=weight.device)
    between = (codes[1:] + codes[:-1]) / 2
    nearest = torch.bucketize(torch.where(most > 0, blocks / most, blocks), between)
    return (codes[nearest] * most).flatten()[: len(flat)].view_as(weight).to(weight.dtype)


def pruned(weight: Float[Tensor, "d_out d_in"], share: float) -> Float[Tensor, "d_out d_in"]:
    """With 0 in the place of the round(share n) weights of the smallest magnitude; of equals, the first.

    Layer-wise magnitude pruning (Han et al. 2015, arXiv:1506.02626).
    """
    count = round(share * weight.numel())
    if not count:
        return weight
    magnitudes = weight.abs().flatten()
    bound = magnitudes.kthvalue(count).values
    below = magnitudes < bound
    equal = (magnitudes == bound).nonzero().flatten()[: count - int(below.sum())]
    below[equal] = True
    return weight.masked_fill(below.view_as(weight), 0)


def low_rank(weight: Float[Tensor, "d_out d_in"], rank: int) -> Float[Tensor, "d_out d_in"]:
    """The nearest matrix of that rank in the Frobenius norm, by its singular values (Eckart & Young 1936)."""
    if rank >= min(weight.shape):
        return weight
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).to(weight.dtype)


def noised(weight: Float[Tensor, "d_out d_in"], std: float, seed: int, name: str) -> Float[Tensor, "d_out d_in"]:
    """With Gaussian noise of `std` times the root mean square of the weights; drawn by `seed` and `name` on the CPU."""
    if not std:
        return weight
    # torch's generator on the CPU looks at 32 bits of its seed only.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
    scale = std * weight.float().square().mean().sqrt()
    return (weight.float() + scale * noise).to(weight.dtype)
