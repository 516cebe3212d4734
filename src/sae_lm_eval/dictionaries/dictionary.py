"""What every loader makes of a spec: a `Dictionary`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

# What a reader has to know of a release before its numbers mean something.
STATED = ("model_names", "hook_in", "hook_out", "context_size", "prepend_bos")


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder or transcoder with what its release says of it.

    `reconstruct` maps activations (..., d_in) to (..., d_out); `encode` maps them to element activations
    (..., d_dictionary). Both take and give the module's own dtype. `elements`, where there is one, is the module that
    gives what `encode` does on the way of `reconstruct`. `processing` is how TransformerLens loaded the model that it
    was trained on, by `processing_source`. `None` in any other field means that the release does not say; it never
    stands for a guess.
    """

    name: str
    module: nn.Module
    reconstruct: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    architecture: str
    d_in: int
    d_out: int
    d_dictionary: int
    hook_in: str | None
    hook_out: str | None
    module_hook_in: str | None = None
    module_hook_out: str | None = None
    model_names: tuple[str, ...] = ()
    context_size: int | None = None
    prepend_bos: bool | None = None
    processing: Mapping[str, Any] = field(default_factory=dict)
    needs_norm_factor: bool = False
    sequential: bool = False
    elements: nn.Module | None = None
    revision: str | None = None
    remarks: tuple[str, ...] = ()
    processing_source: str | None = None

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes somewhere else than it reads."""
        return self.hook_out != self.hook_in

    @property
    def not_stated(self) -> tuple[str, ...]:
        """What neither the release's files nor its authors say, by the names of the fields."""
        missing = [name for name in STATED if getattr(self, name) in (None, ())]
        return (*missing, "processing") if not self.processing and self.processing_source is None else tuple(missing)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes and bytes of the weights, so that no two dictionaries pass for one."""
        weights = sorted(self.module.state_dict().items())
        state = tuple((name, weight.data_ptr(), weight._version) for name, weight in weights)
        if state not in self._hashed:
            self._hashed.clear()
            self._hashed[state] = self._hash(weights)
        return self._hashed[state]

    @cached_property
    def _hashed(self) -> dict[tuple, str]:
        """What the weights were when they were hashed last."""
        return {}

    @staticmethod
    def _hash(weights: Sequence[tuple[str, Tensor]]) -> str:
        digest = hashlib.sha256()
        for name, weight in weights:
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
