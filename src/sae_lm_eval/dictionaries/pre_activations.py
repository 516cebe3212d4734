"""Which latents of a dictionary just missed the threshold above which they are active."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.errors import UserError

# By architecture: latents are active above 0, above a threshold of their own, or where they are among the k largest.
ABOVE_ZERO = ("standard", "transcoder", "skip_transcoder")
ABOVE_THRESHOLD = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
LARGEST = ("topk", "topk_transcoder", "topk_skip_transcoder")
BY_SPARSIFY = ("sparsify", "sparsify_transcoder")

# Of what is read, the latents, and by how much each of them is above its threshold before the activation function;
# where all latents of a position have one threshold, it is left out.
BeforeActivation = Callable[
    [Float[Tensor, "positions d_in"]], tuple[Float[Tensor, "positions latents"], Float[Tensor, "positions latents"]]
]


@dataclass(frozen=True)
class NearMisses:
    """Of a dictionary whose class tells what latents are before their activation function."""

    dictionary: Dictionary
    before: BeforeActivation

    def nearest(
        self, z: Float[Tensor, "positions d_in"], count: int
    ) -> tuple[Int[Tensor, "positions count"], Bool[Tensor, "positions count"]]:
        """The latents that are not active, of which the threshold is missed by least; and whether each is one: a
        position may have fewer.
        """
        latents, above = self.before(z)
        active = (latents.to_dense() if latents.is_sparse else latents) != 0
        top = above.masked_fill(active, -torch.inf).topk(min(count, above.shape[-1]), dim=-1)
        return top.indices, top.values > -torch.inf

    def directions(self, latents: Int[Tensor, "positions count"]) -> Float[Tensor, "positions count d_out"]:
        """What each latent writes along, in the dictionary's own space."""
        module: Any = self.dictionary.module
        return module.W_dec[latents].detach()


def near_misses(dictionary: Dictionary) -> NearMisses:
    """Raises `UserError` for a dictionary whose class does not tell what its latents are below the threshold."""
    module: Any = dictionary.module
    kind, encode = dictionary.architecture, dictionary.encode
    if encode is not None and kind in BY_SPARSIFY and module.cfg.activation == "topk":
        return NearMisses(dictionary, lambda z: (encode(z), _of_sparsify(module, z)))
    architectures = (*ABOVE_ZERO, *ABOVE_THRESHOLD, *LARGEST)
    if encode is None or kind not in architectures or not hasattr(module, "hook_sae_acts_pre"):
        raise UserError(
            f"{dictionary.name}: the architecture '{kind}' does not tell which latents just missed their threshold."
        )
    return NearMisses(dictionary, lambda z: _of_saelens(module, encode, z))


def _of_sparsify(coder: Any, z: Float[Tensor, "positions d_in"]) -> Float[Tensor, "positions latents"]:
    """Before the ReLU."""
    return coder.encoder(z if coder.cfg.transcode else z - coder.b_dec)


def _of_saelens(
    sae: Any, encode: Callable[[Tensor], Tensor], z: Float[Tensor, "positions d_in"]
) -> tuple[Float[Tensor, "positions latents"], Float[Tensor, "positions latents"]]:
    kept: list[Tensor] = []
    handle = sae.hook_sae_acts_pre.register_forward_hook(lambda _module, _args, output: kept.append(output))
    try:
        latents = encode(z)
    finally:
        handle.remove()
    before = kept[0]
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        before = before * sae.W_dec.norm(dim=-1)  # as TopK compares them
    threshold = getattr(sae, "threshold", None)
    return latents, before if threshold is None else before - threshold
