"""The last block only where something is asked: nothing looks at what it makes of any other position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sae_lm_eval.architecture import Architecture
from sae_lm_eval.errors import UserError
from sae_lm_eval.fork import blocks_path
from sae_lm_eval.head import forward_as
from sae_lm_eval.port import Port
from sae_lm_eval.splice import Variant


class Paths(NamedTuple):
    """Of the last block and of the MLP in it, None where it has to run everywhere."""

    block: str | None
    mlp: str | None


def paths_of_last_block(model: nn.Module, variants: Sequence[Variant]) -> Paths:
    """A variant that is spliced in there needs it whole, and so does a model that TransformerLens does not know."""
    sites = [site for variant in variants for s in variant.splices for site in (s.site_in, s.site_out)]
    ports = [port for site in sites for port in (site.read, site.write, site.residual) if port is not None]
    blocks = blocks_path(model)
    block = None if blocks is None else f"{blocks}.{len(model.get_submodule(blocks)) - 1}"  # pyright: ignore[reportArgumentType]
    mlp = _mlp(model)
    free = not any(port.path.startswith(f"{block}.") for port in ports)
    apart = mlp is not None and not any(f"{port.path}.".startswith(f"{mlp.path}.") for port in ports)
    return Paths(block if free else None, mlp.path if mlp is not None and apart else None)


def _mlp(model: nn.Module) -> Port | None:
    architecture = Architecture(model)
    try:
        port = architecture.port("mlp.hook_in", architecture.layers - 1)
    except UserError:
        return None
    return port if port is not None and port.side == "input" else None


class LastBlock:
    """Hooks on the last block for a scope. After `ask` a batch's MLP is run, and its queries look, at places asked for.

    A fork may have appended copies of the batch's rows by then: the same places are asked for in each.
    """

    def __init__(self, model: nn.Module, paths: Paths, scope: ExitStack):
        self._places: Any = None  # (asked,) among rows x positions
        self._queries = FewQueries()
        self._shape: Any = None
        if paths.mlp is not None:
            mlp = model.get_submodule(paths.mlp)
            scope.callback(mlp.register_forward_pre_hook(self._narrow).remove)
            scope.callback(mlp.register_forward_hook(self._widen).remove)
        if paths.block is not None:
            block = model.get_submodule(paths.block)
            forward = block.forward

            def attending(*args: Any, **kwargs: Any) -> Any:
                with self._queries:
                    return forward(*args, **kwargs)

            scope.enter_context(forward_as(block, attending))

    def ask(self, places: np.ndarray, shape: torch.Size, device: torch.device) -> None:
        """What the next batch is asked for: `places` among its rows x positions, sorted, each once."""
        self._places, self._positions = torch.from_numpy(places).to(device), shape.numel()
        rows, length = shape
        self._queries.at = None
        row, column = np.divmod(places, length)
        count = np.bincount(row, minlength=rows)
        most = max(1, int(count.max()))
        if 2 * most <= length:
            at = np.zeros((rows, most), dtype=np.int64)
            at[row, np.arange(len(places)) - (np.cumsum(count) - count)[row]] = column
            self._queries.at = torch.from_numpy(at).to(device)

    def _narrow(self, _mlp: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        self._shape = hidden.shape
        return (hidden.reshape(-1, self._positions, hidden.shape[-1])[:, self._places], *rest)

    def _widen(self, _mlp: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        wide = output.new_zeros(len(output), self._positions, output.shape[-1])
        wide[:, self._places] = output
        return wide.reshape(self._shape)


class FewQueries(TorchFunctionMode):
    """Inside the scope, attention under a mask is that of the queries `at` (rows, some) alone, and 0 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.at: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        mask = kwargs.get("attn_mask")
        if func is not nn.functional.scaled_dot_product_attention or mask is None or self.at is None:
            return func(*args, **kwargs)
        query, *rest = args
        at = self.at.repeat(len(query) // len(self.at), 1)[:, None, :, None]
        few = at.expand(-1, query.shape[1], -1, query.shape[3])
        mask = mask.expand(len(query), -1, -1, -1)
        kwargs["attn_mask"] = mask.gather(2, at.expand(-1, mask.shape[1], -1, mask.shape[3]))
        found = func(query.gather(2, few), *rest, **kwargs)
        whole = found.new_zeros(*query.shape[:3], found.shape[3])
        return whole.scatter_(2, at.expand(-1, *found.shape[1:2], -1, found.shape[3]), found)
