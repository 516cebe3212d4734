"""The last block's MLP only where something is asked: no other position's output is looked at by anything."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from sae_lm_eval.architecture import Architecture
from sae_lm_eval.errors import UserError
from sae_lm_eval.splice import Variant


class LastMlp:
    """Hooks on the MLP at `path` for a scope. `places` are the positions asked for, among rows x positions of a batch.

    A fork may have appended copies of the batch's rows by then: the same positions are asked for in each.
    """

    def __init__(self, model: nn.Module, path: str, scope: ExitStack):
        self.places: Tensor | None = None
        self.positions = 0  # rows x positions of a batch
        self._shape: Any = None
        mlp = model.get_submodule(path)
        scope.callback(mlp.register_forward_pre_hook(self._narrow).remove)
        scope.callback(mlp.register_forward_hook(self._widen).remove)

    def _narrow(self, _mlp: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        self._shape = hidden.shape
        return (hidden.reshape(-1, self.positions, hidden.shape[-1])[:, self.places], *rest)

    def _widen(self, _mlp: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        wide = output.new_zeros(len(output), self.positions, output.shape[-1])
        wide[:, self.places] = output
        return wide.reshape(self._shape)


def path_of_last_mlp(model: nn.Module, variants: Sequence[Variant]) -> str | None:
    """Where it is, None where TransformerLens does not know the model or a variant is spliced in there."""
    architecture = Architecture(model)
    try:
        port = architecture.port("mlp.hook_in", architecture.layers - 1)
    except UserError:
        return None
    if port is None or port.side != "input":
        return None
    sites = [site for variant in variants for s in variant.splices for site in (s.site_in, s.site_out)]
    ports = [port for site in sites for port in (site.read, site.write, site.residual) if port is not None]
    return None if any(f"{used.path}.".startswith(f"{port.path}.") for used in ports) else port.path
