"""From the raw activations of a Hugging Face model to those a dictionary was trained on, and back.

TransformerLens can rewrite weights on loading so that the model's function stays the same while its
activations change. A dictionary trained on such a model is applied as `back(dictionary(there(x)), y)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.splicing.choices import MAPS
from sae_lm_eval.splicing.hook_names import Architecture
from sae_lm_eval.splicing.module_io import hook_side, record_activations
from sae_lm_eval.splicing.site import Site

CENTERED_KINDS = frozenset(
    {
        "hook_embed",
        "hook_resid_pre",
        "hook_resid_mid",
        "hook_resid_post",
        "hook_attn_out",
        "hook_mlp_in",
        "hook_mlp_out",
    }
)


@dataclass(frozen=True)
class ActivationMap:
    """`there(x)` is what the dictionary sees of raw `x`; `back(z, y)` puts its output `z` in the place of raw `y`.

    - raw: the identity.
    - centered: the mean over the width is taken out, `x - mean(x)`, and the mean of what is replaced put back.
      That is what `center_writing_weights` does to the residual stream of a LayerNorm model.
    - value_bias, folded_value_bias: attention's `z` less the constant that folding moved into the output bias.
    """

    name: str
    shift: Float[Tensor, " width"] | None = None

    def there(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if self.name == "centered":
            return x - x.mean(-1, keepdim=True)
        return x if self.shift is None else x - self.shift.to(x)

    def back(self, z: Float[Tensor, "*batch width"], y: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if self.name == "centered":
            return z + y.mean(-1, keepdim=True)
        return z if self.shift is None else z + self.shift.to(z)


def map_name(architecture: Architecture, site: Site, processing: Mapping[str, Any]) -> str:
    """The map that TransformerLens' loading options `processing` imply for activations at `site`.

    Centring is skipped by TransformerLens for RMSNorm models.
    """
    if site.kind in CENTERED_KINDS and processing.get("center_writing_weights") and architecture.layer_norm:
        return "centered"
    if site.kind == "attn.hook_z" and processing.get("fold_value_biases"):
        return "folded_value_bias" if processing.get("fold_ln") else "value_bias"
    return "raw"


def build_map(architecture: Architecture, site: Site, name: str) -> ActivationMap:
    """The map `name` for `site`. Raises `UserError` for an unknown name or one that makes no sense there."""
    one_of(name, MAPS, "hook_map")
    if name in ("raw", "centered"):
        return ActivationMap(name)
    if site.kind != "attn.hook_z" or site.layer is None:
        raise UserError(f"hook_map={name} is about attention's hook_z, and the site is '{site.hook}'.")
    return ActivationMap(name, value_shift(architecture, site.layer, folded=name == "folded_value_bias"))


@torch.no_grad()
def value_shift(architecture: Architecture, layer: int, *, folded: bool) -> Float[Tensor, " width"]:
    """The constant c (heads * d_head) by which processed z falls short of raw z.

    Attention weights sum to one, so whatever is constant in the values passes unchanged into z: the value
    bias b_V, and with `fold_ln` also beta W_V, where beta is the bias of the norm before attention. So c is what
    attention makes of beta, or of nothing, at every position; layouts of the values and adapters are its own affair.

    Raises `UserError` where attention weights do not sum to one (attention sinks): z then has no such constant.
    """
    entry, z = (architecture.port(f"attn.{hook}", layer) for hook in ("hook_in", "hook_z"))
    if entry is None or z is None:
        raise UserError(f"{architecture.name} has no attention with values in layer {layer}.")
    model = architecture.model
    ids = torch.zeros(1, 4, dtype=torch.long, device=next(model.parameters()).device)

    def constant(x: Tensor) -> Tensor:
        beta = architecture.bias_before_attention(layer, x.shape[-1]) if folded else x.new_zeros(x.shape[-1])
        return beta.to(x).expand_as(x)

    with contextlib.ExitStack() as scope:
        scope.callback(hook_side(model, entry, constant).remove)
        shift = record_activations(model, [z], ids)[z].reshape(4, -1).float()
    if not shift.is_meta and (shift - shift[:1]).norm() > 1e-2 * shift.norm():
        raise UserError(
            f"Attention weights of {architecture.name} do not sum to one, so no constant is folded out of hook_z: "
            f"give hook_map=raw."
        )
    return shift[0]
