"""What a dictionary makes of a position, tried on random activations: it must not depend on other sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.errors import UserError

ROWS, POSITIONS = 8, 3
SIZES = (0.1, 100.0)  # of the rows' entries: a choice among all rows takes from the loudest
# Relative to a position's own output; above what sums in another order leave.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}
MOST = 0.75  # of the positions: at the others a latent may lie within rounding of its threshold


@torch.no_grad()
def tried(dictionary: Dictionary) -> Dictionary:
    """The dictionary, `sequential` where it turns out to look at other positions of a sequence.

    Two batches of random activations (rows, positions, d_in) are run together, apart, and with their rows shuffled,
    each position by itself, and by the dictionary's own formula where it has one.

    Raises `UserError` where it makes something else of a sequence when other sequences are in the batch, or where
    calling it does not give its formula.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(ROWS, POSITIONS, dictionary.widths[0], generator=generator, device="cpu")
    x *= torch.logspace(math.log10(SIZES[0]), math.log10(SIZES[1]), ROWS, device="cpu")[:, None, None]
    shuffled = torch.randperm(ROWS, generator=generator, device="cpu")
    x = x[torch.randperm(ROWS, generator=generator, device="cpu")].to(dictionary.device, dictionary.dtype)
    run = dictionary.reconstruct
    together, half = run(x), ROWS // 2
    if not (same(torch.cat([run(x[:half]), run(x[half:])]), together) and same(run(x[shuffled]), together[shuffled])):
        raise UserError(
            f"{dictionary.name} makes something else of a sequence when other sequences are in its batch, as what is "
            f"being trained may: splice it as it is used after training (SAELens: sae.save_inference_model(FOLDER), "
            f"then sae=FOLDER)."
        )
    if dictionary.formula is not None and not same(dictionary.formula(x), together):
        raise UserError(
            f"{dictionary.name} does not give what its own weights make of an activation when it is called: take off "
            f"what edits its output."
        )
    if dictionary.sequential or same(_each_by_itself(run, x), together):
        return dictionary
    return replace(dictionary, sequential=True)


def _each_by_itself(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return run(x.flatten(0, 1)[:, None]).unflatten(0, x.shape[:2])[:, :, 0]


def same(output: Tensor, other: Tensor) -> bool:
    """Whether two outputs (rows, positions, d_out) agree at most positions, within rounding."""
    output, tolerance = output.to(other.device), TOLERANCES[other.dtype]
    off = (output.double() - other.double()).norm(dim=-1)
    agrees = off <= tolerance * other.double().norm(dim=-1)
    # What is no number in both is told where it meets a request.
    agrees |= ~(output.isfinite().all(-1) | other.isfinite().all(-1))
    return bool(agrees.double().mean() >= MOST)
