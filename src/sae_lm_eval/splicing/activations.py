"""What passes through a model that reads a text, and its mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.module_io import Port, record
from sae_lm_eval.splicing.splice import Variant


def passing(
    model: nn.Module, ports: Sequence[Port], texts: Sequence[Sequence[int]], special_ids: frozenset[int]
) -> Iterator[dict[Port, Tensor]]:
    """For each window, what passes `ports`, (positions, width) in float32, without the positions of special ids."""
    device = next(model.parameters()).device
    for ids in texts:
        row = torch.tensor([list(ids)], device=device)
        keep = torch.tensor([[i not in special_ids for i in ids]], device=device)
        seen = record(model, list(ports), row)
        yield {port: x.reshape(*row.shape, -1)[keep.to(x.device)].float() for port, x in seen.items()}


def mean_activations(
    model: nn.Module, variant: Variant, texts: Sequence[Sequence[int]], special_ids: frozenset[int]
) -> list[Tensor]:
    """The mean of what each splice would replace, (d_out,), over all positions but those of special ids."""
    ports = [splice.site_out.read for splice in variant.splices]
    sums: dict[Port, Tensor] = {}
    count = 0
    for seen in passing(model, ports, texts, special_ids):
        count += next(iter(seen.values())).shape[0]
        for port, x in seen.items():
            sums[port] = sums.get(port, torch.zeros((), dtype=torch.float64, device="cpu")) + x.double().sum(0).cpu()
    if not count:
        raise UserError("The text for the mean holds special tokens alone.")
    return [(sums[port] / count).float() for port in ports]
