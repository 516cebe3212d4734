"""Cross-layer transcoders: the latents of a layer write at that layer and at all later ones.

Formulas: Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models",
transformer-circuits.pub/2025/attribution-graphs/methods.html, and circuit_tracer's cross_layer_transcoder.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lm_eval.dictionaries.sparse_decoding import Active, gather_pays

SAMPLED = 2**12  # numbers, evenly spread


class FileRows:
    """Decoder rows that stay in their file and are read where latents are active.

    `tensor` (latents, layers written, d_out) is backed by the file. A checksum takes `stamp` of it, `SAMPLED` of its
    numbers: reading it whole would take longer than an evaluation.
    """

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        places = torch.linspace(0, tensor.numel() - 1, min(SAMPLED, tensor.numel()), dtype=torch.float64).long()
        at = torch.unravel_index(places, tensor.shape)
        # As whole numbers, which no cast to another dtype touches.
        self.stamp = torch.cat([torch.tensor(tensor.shape), tensor[at].double().view(torch.int64)])

    def __deepcopy__(self, _memo: object) -> FileRows:
        return self  # nothing writes to it


class CrossLayerLatents(nn.Module):
    """The latents of layer `layer` of a cross-layer transcoder, as many as `W_enc` (d_in, latents) has columns.

    `decoder` (latents, layers written, d_out) holds what they write at `layer` and at each later one, in order. With a
    `threshold` (latents,) t a latent h is h where h > t and 0 elsewhere; without it is ReLU(h). `edits` are what
    becomes of these activations.
    """

    threshold: Tensor | None
    stamp: Tensor | None

    def __init__(
        self,
        layer: int,
        W_enc: Float[Tensor, "d_in latents"],
        b_enc: Float[Tensor, " latents"],
        decoder: Float[Tensor, "latents layers d_out"] | FileRows,
        threshold: Float[Tensor, " latents"] | None = None,
        edits: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.layer, self.edits = layer, edits
        self.W_enc, self.b_enc = nn.Parameter(W_enc, requires_grad=False), nn.Parameter(b_enc, requires_grad=False)
        self.register_buffer("threshold", threshold)
        in_file = isinstance(decoder, FileRows)
        self.W_dec = None if in_file else nn.Parameter(decoder, requires_grad=False)
        # Private, so that no checksum reads it: the stamp stands for it among the weights.
        self._rows_in_file = decoder if in_file else None
        self.register_buffer("stamp", decoder.stamp if in_file else None)

    @property
    def decoder(self) -> Float[Tensor, "latents layers d_out"]:
        """Where it lies: on the module's device, or in a file."""
        decoder = self.W_dec if self._rows_in_file is None else self._rows_in_file.tensor
        assert decoder is not None
        return decoder

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latents"]:
        """The latents of activations."""
        before = x @ self.W_enc + self.b_enc
        latents = before.relu() if self.threshold is None else torch.where(before > self.threshold, before, 0)
        return latents if self.edits is None else self.edits(latents)

    def edited(self, edits: Callable[[Tensor], Tensor]) -> CrossLayerLatents:
        """The same latents with `edits` of their activations; the weights are these, not copies."""
        decoder = self._rows_in_file or self.W_dec
        assert decoder is not None
        return CrossLayerLatents(self.layer, self.W_enc, self.b_enc, decoder, self.threshold, edits)

    def written(
        self, latents: Float[Tensor, "*batch latents"], layers: Sequence[int]
    ) -> list[Float[Tensor, "*batch d_out"]]:
        """What `latents` write at each of `layers`.

        Where few are active their rows are gathered: the decoder is by far the largest part of such a transcoder.
        """
        decoder = self.decoder
        if self._rows_in_file is None and not gather_pays(latents, decoder):
            return [latents @ decoder[:, layer - self.layer] for layer in layers]
        active = Active.from_dense(latents)
        read, place = active.latents.unique(return_inverse=True)  # of a file, each row once
        read = read.to(decoder.device)
        return [active.sums(decoder[read, layer - self.layer].to(latents), place).to(latents.dtype) for layer in layers]


class CrossLayerOutput(nn.Module):
    """What a cross-layer transcoder writes at one layer: the sum over the `latents` of that layer and of all before it
    of what each writes there, plus `b_dec` (d_out,), plus x W_skip (d_in, d_out) of what is read at that layer.
    """

    W_skip: Tensor | None

    def __init__(
        self,
        latents: Sequence[CrossLayerLatents],
        b_dec: Float[Tensor, " d_out"],
        W_skip: Float[Tensor, "d_in d_out"] | None = None,
    ):
        super().__init__()
        self.layer = latents[-1].layer
        self.latents = nn.ModuleList(latents)
        self.b_dec = nn.Parameter(b_dec, requires_grad=False)
        self.register_buffer("W_skip", W_skip)

    @property
    def parameter_count(self) -> int:
        """Weights of the layer's own: those of earlier layers are counted there."""
        own = self.sources[-1]
        weights = (own.W_enc, own.b_enc, own.decoder, own.threshold, self.b_dec, self.W_skip)
        return sum(tensor.numel() for tensor in weights if tensor is not None)

    @property
    def sources(self) -> Sequence[CrossLayerLatents]:
        """The latents that write here, from the first layer on."""
        return list(self.latents)  # pyright: ignore[reportReturnType]

    def of_latents(self, latents: Sequence[CrossLayerLatents]) -> CrossLayerOutput:
        """What `latents`, in the place of its own, write at the layer; the other weights are these, not copies."""
        return CrossLayerOutput(latents, self.b_dec, self.W_skip)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The part of the layer's own latents, with what does not come from latents."""
        own = self.sources[-1]
        return own.written(own(x), [self.layer])[0] + self.constant(x)

    def constant(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*#batch d_out"]:
        """What does not come from latents."""
        return self.b_dec if self.W_skip is None else x @ self.W_skip + self.b_dec

    def decode(self, latents: Float[Tensor, "*batch latents"]) -> Float[Tensor, "*batch d_out"]:
        """What the layer's own `latents` write here, with `b_dec`."""
        return self.sources[-1].written(latents, [self.layer])[0] + self.b_dec
