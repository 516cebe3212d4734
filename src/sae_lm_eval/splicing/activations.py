"""What passes through a model that reads a text, and its mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.module_io import ModuleSide, record_activations
from sae_lm_eval.splicing.special_tokens import spliced_positions
from sae_lm_eval.splicing.splice import Variant


def passing(
    model: nn.Module,
    ports: Sequence[ModuleSide],
    texts: Sequence[Sequence[int]],
    special_ids: frozenset[int],
    first: Mapping[ModuleSide, int] | None = None,
) -> Iterator[dict[ModuleSide, Tensor]]:
    """For each window, what passes `ports`, (positions, width) in float32, without the positions of special ids.

    `first` has for some ports the position that is begun with.
    """
    device = next(model.parameters()).device
    for ids in texts:
        row = torch.tensor([list(ids)], device=device)
        positions = torch.arange(row.shape[1], device=device)[None]
        spliced = partial(spliced_positions, row, positions, special_ids)
        yield {
            port: x.reshape(*row.shape, -1)[spliced((first or {}).get(port, 0)).to(x.device)].float()
            for port, x in record_activations(model, list(ports), row).items()
        }


def mean_activations(
    model: nn.Module, variant: Variant, texts: Sequence[Sequence[int]], special_ids: frozenset[int]
) -> list[Tensor]:
    """The mean of what each splice would replace, (d_out,), over all positions where it may: none of special ids, nor
    of those below its first."""
    ports = [splice.site_out.read for splice in variant.splices]
    first = {splice.site_out.read: splice.first_position for splice in variant.splices}
    sums: dict[ModuleSide, Tensor] = {}
    counts = dict.fromkeys(ports, 0)
    for seen in passing(model, ports, texts, special_ids | variant.special_ids, first):
        for port, x in seen.items():
            counts[port] += x.shape[0]
            sums[port] = sums.get(port, torch.zeros((), dtype=torch.float64, device="cpu")) + x.double().sum(0).cpu()
    if not all(counts.values()):
        raise UserError("The text for the mean holds special tokens alone.")
    return [(sums[port] / counts[port]).float() for port in ports]


def record_of_windows(windows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Of the text that a mean was taken from: how many tokens, the prefix tokens aside, and a hash of the ids."""
    ids = np.concatenate([np.asarray(window, dtype=np.int64) for window in windows])
    return {"tokens": len(ids) - len(windows), "sha256": hashlib.sha256(ids.tobytes()).hexdigest()}
