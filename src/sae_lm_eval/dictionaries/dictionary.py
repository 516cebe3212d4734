"""What every loader makes of a spec: a `Dictionary`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sae_lm_eval.runtime.content import Content, contents

# What a reader has to know of a release before its numbers mean something.
STATED = ("model_names", "hook_in", "hook_out", "context_size", "prepend_bos")


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder or transcoder with what its release says of it.

    `reconstruct` maps activations (..., d_in) to (..., d_out); `encode` maps them to those of its latents (...,
    d_dictionary). Both take and give the module's own dtype. `latent_module`, where there is one, gives what
    `encode` does on the way of `reconstruct`; `formula` is what its weights make of activations, computed otherwise
    than by `reconstruct`. `processing` is how TransformerLens loaded the model that it was trained on, by
    `processing_source`. `stated` is what the release says of its numbers: see `dictionaries.stated`. It was not
    trained at positions below `first_position`, nor at `untrained_tokens`: ids, or "special" for all that the
    tokenizer declares special. `None` in any other field means that the release does not say; it never stands for a
    guess. `is_loaded` is whether a loader of this package has made it, and `origin` what it was made from where
    that was an object of the user's.
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
    latent_module: nn.Module | None = None
    formula: Callable[[Tensor], Tensor] | None = None
    stated: Mapping[str, float] = field(default_factory=dict)
    revision: str | None = None
    remarks: tuple[str, ...] = ()
    first_position: int | None = None
    untrained_tokens: tuple[int, ...] | str = ()
    is_loaded: bool = False
    origin: Origin | None = None
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
        """A checksum of 32 hexadecimal digits over the names, shapes and bits of the weights."""
        return self.content().weights

    def content(self) -> Content:
        """What decides its output, as it is now."""
        return contents({"": self.module}, {"": self.functions})[""]

    @property
    def functions(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """What decides its output besides the module: a loader's functions are the package's own."""
        return () if self.is_loaded else (self.reconstruct, self.encode)


@dataclass(frozen=True)
class Origin:
    """The object of the user's that a dictionary was made from, and its content then.

    `dtype` and `norm_factor` are what the dictionary was made with.
    """

    source: Any
    content: Content
    dtype: torch.dtype
    norm_factor: float | str | None

    @property
    def module(self) -> nn.Module:
        return self.source.module if isinstance(self.source, Dictionary) else self.source

    @property
    def functions(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        return self.source.functions if isinstance(self.source, Dictionary) else ()
