"""What every loader makes of a spec: a `Dictionary`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_lm_eval.dictionaries.cross_layer import CrossLayerOutput
from sae_lm_eval.runtime.content import Content, contents

# What a reader has to know of a release before its numbers mean something.
STATED = ("model_names", "hook_in", "hook_out", "context_size", "prepend_bos")


class SitePair(NamedTuple):
    """Where latents read and write, by TransformerLens' names and by modules of the Hugging Face model."""

    hook_in: str
    hook_out: str
    module_hook_in: str | None = None
    module_hook_out: str | None = None


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder, a transcoder or another map of activations, with what its release says of it.

    `reconstruct` maps activations (..., d_in) to (..., d_out); `encode` maps them to those of its latents (...,
    d_dictionary), and is None where there are no latents; `decode`, where it is known, maps those of latents to
    (..., d_out), without a skip connection. All take and give the module's own dtype. `latent_module`, where there is
    one, gives what `encode` does on the way of `reconstruct`; `formula` is what its weights make of activations,
    computed otherwise than by `reconstruct`. `processing` is how TransformerLens loaded the model that it was trained
    on, by `processing_source`. `stated` is what the release says of its numbers: see `dictionaries.stated`. It was not
    trained at positions below `first_position`, nor at `untrained_tokens`: ids, or "special" for all that the tokenizer
    declares special. `None` in any other field means that the release does not say, and of widths that they are found
    where it is placed; it never stands for a guess. `is_loaded` is whether a loader of this package has made it, `code`
    what of the user's own code decides its output besides, and `origin` what it was made from where that was an object
    of the user's. `neuronpedia` is the path of its latents' pages on neuronpedia.org.

    Of a cross-layer transcoder it is what is written at one layer, `cross_layer`: latents of the layers before, which
    read at `earlier`, write there too. `reconstruct` and `decode` are then the part of the layer's own latents.
    """

    name: str
    module: nn.Module
    reconstruct: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor] | None
    architecture: str
    d_in: int | None
    d_out: int | None
    d_dictionary: int | None
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
    code: tuple[Callable[..., Any], ...] = ()
    decode: Callable[[Tensor], Tensor] | None = None
    origin: Origin | None = None
    processing_source: str | None = None
    neuronpedia: str | None = None
    earlier: tuple[SitePair, ...] = ()
    cross_layer: CrossLayerOutput | None = None

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
        return next((t.dtype for t in self._tensors() if t.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        return next((t.device for t in self._tensors()), torch.device("cpu"))

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.module.parameters()
        yield from self.module.buffers()

    @property
    def widths(self) -> tuple[int, int]:
        """Of what it reads and of what it writes, once it is placed."""
        assert self.d_in is not None, "a splice places its dictionary"
        assert self.d_out is not None, "a splice places its dictionary"
        return self.d_in, self.d_out

    def fingerprint(self) -> str:
        """A checksum of 32 hexadecimal digits over the names, shapes and bits of the weights."""
        return self.content().weights

    def content(self) -> Content:
        """What decides its output, as it is now."""
        return contents({"": self.module}, {"": self.functions})[""]

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """What decides its output besides the module: a loader's functions are the package's own."""
        own = () if self.is_loaded else (self.reconstruct, self.encode, self.decode)
        return (*filter(None, own), *self.code)


@dataclass(frozen=True)
class Origin:
    """The object of the user's that a dictionary was made from, and its content then.

    `module` and `functions` decide what it gives; `dtype` and `norm_factor` are what the dictionary was made with.
    """

    source: Any
    module: nn.Module
    functions: tuple[Callable[..., Any], ...]
    content: Content
    dtype: torch.dtype
    norm_factor: float | str | None
