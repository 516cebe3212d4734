"""The last block only where targets are predicted: nothing looks at what it makes of any other position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.hook_names import Architecture, blocks_path
from sae_lm_eval.splicing.patching import instead
from sae_lm_eval.splicing.splice import Variant


class Paths(NamedTuple):
    """Of the last block, None where its attention has to run everywhere, and of modules in it that need not."""

    block: str | None
    modules: tuple[str, ...]


def paths_of_last_block(model: nn.Module, variants: Sequence[Variant]) -> Paths:
    """What a variant that is spliced in there leaves of it.

    The modules are the projections of queries and to the output, and the MLP, where they are modules of their own and
    TransformerLens knows the model.
    """
    sites = [site for variant in variants for s in variant.splices for site in (s.site_in, s.site_out)]
    used = [port.path for site in sites for port in (site.read, site.write, site.residual) if port is not None]
    # What an edit of the block itself changes is inside; what is spliced in at its output is not.
    used += [f"{edit.path}." for variant in variants for edit in variant.edits]
    blocks = blocks_path(model)
    block = None if blocks is None else f"{blocks}.{len(model.get_submodule(blocks)) - 1}"  # pyright: ignore[reportArgumentType]
    architecture, hooks = Architecture(model), ("attn.q.hook_in", "attn.k.hook_in", "attn.hook_z", "mlp.hook_in")
    query, key, output, mlp = (_path(architecture, hook) for hook in hooks)
    modules = [] if mlp is None or any(f"{path}.".startswith(f"{mlp}.") for path in used) else [mlp]
    if block is None or any(path.startswith(f"{block}.") for path in used):
        return Paths(None, tuple(modules))
    attention = [path for path in (query, output) if path is not None and path != key]
    return Paths(block, (*attention, *modules))


def _path(architecture: Architecture, hook: str) -> str | None:
    """Of the module in the last block whose input the hook is."""
    try:
        port = architecture.port(hook, architecture.layers - 1)
    except UserError:
        return None
    return port.path if port is not None and port.side == "input" else None


class LastBlock:
    """Hooks on the last block for a scope.

    After `begin` its modules run, and its queries look, at some positions alone. A fork may have appended copies of the
    batch's rows by then: they are the same positions in each.
    """

    def __init__(self, model: nn.Module, paths: Paths, scope: ExitStack):
        self._places: Any = None  # (distinct positions,) indices among rows x length
        self._queries = FewQueries()
        self._shape: Any = None
        self._device: Any = None  # the last block's, which may be on another one than the first
        for path in paths.modules:  # none of them is in another
            module = model.get_submodule(path)
            self._device = next((weights.device for weights in module.parameters()), self._device)
            scope.callback(module.register_forward_pre_hook(self._narrow).remove)
            scope.callback(module.register_forward_hook(self._widen).remove)
        if paths.block is not None:
            block = model.get_submodule(paths.block)
            self._device = next(block.parameters()).device
            # A TorchFunctionMode acts inside a `with` alone, which no pair of hooks can be.
            attending = partial(self._attending, block.forward)
            scope.enter_context(instead(block, "forward", attending))

    def begin(self, places: Int[np.ndarray, " places"], shape: torch.Size) -> None:
        """Before each pass: which places are needed among rows x positions, of `shape`; sorted, each once."""
        self._places, self._positions = torch.from_numpy(places).to(self._device), shape.numel()
        rows, length = shape
        self._queries.at = None
        row, column = np.divmod(places, length)
        count = np.bincount(row, minlength=rows)
        most = max(1, int(count.max()))
        if 2 * most <= length:
            at = np.zeros((rows, most), dtype=np.int64)
            at[row, np.arange(len(places)) - (np.cumsum(count) - count)[row]] = column
            self._queries.at = torch.from_numpy(at).to(self._device)

    def _attending(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._queries:
            return forward(*args, **kwargs)

    def _narrow(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        self._shape = hidden.shape
        return (hidden.reshape(-1, self._positions, hidden.shape[-1])[:, self._places], *rest)

    def _widen(
        self, _module: nn.Module, _args: tuple, output: Float[Tensor, "copies positions width"]
    ) -> Float[Tensor, "*batch width"]:
        wide = output.new_zeros(len(output), self._positions, output.shape[-1])
        wide[:, self._places] = output
        return wide.reshape(*self._shape[:-1], -1)


class FewQueries(TorchFunctionMode):
    """Inside the scope, attention under a mask is that of the queries `at` (rows, some) alone, and 0 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.at: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = {} if kwargs is None else dict(kwargs)
        mask = kwargs.get("attn_mask")
        if func is not nn.functional.scaled_dot_product_attention or mask is None or self.at is None:
            return func(*args, **kwargs)
        return narrowed(func, args, kwargs, mask, self.at)


def narrowed(
    attention: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mask: Shaped[Tensor, "#copies_and_rows #heads length all"],
    at: Int[Tensor, "rows some"],
) -> Float[Tensor, "copies_and_rows heads length d_head"]:
    """What `attention` gives the queries `at` under a mask, and 0 elsewhere."""
    query, *rest = args
    at = at.repeat(len(query) // len(at), 1)[:, None, :, None]
    few = at.expand(-1, query.shape[1], -1, query.shape[3])
    mask = mask.expand(len(query), -1, -1, -1)
    mask = mask.gather(2, at.expand(-1, mask.shape[1], -1, mask.shape[3]))
    attended = attention(query.gather(2, few), *rest, **{**kwargs, "attn_mask": mask})
    whole = attended.new_zeros(*query.shape[:3], attended.shape[3])
    return whole.scatter_(2, at.expand(-1, *attended.shape[1:2], -1, attended.shape[3]), attended)
