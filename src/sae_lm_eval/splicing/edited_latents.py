"""Splices whose dictionaries' latents are edited: which dictionary each edit is of, and in which heads it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lm_eval.dictionaries.cross_layer import CrossLayerLatents
from sae_lm_eval.dictionaries.latent_edits import LatentEdits, edited
from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.hook_names import Architecture
from sae_lm_eval.splicing.splice import Splice

HEADS = "attn.hook_z"


def with_edits(architecture: Architecture, splices: Sequence[Splice], edits: LatentEdits) -> list[Splice]:
    """The splices with `edits` of their dictionaries' latents; those that these do not touch stay as they are.

    Raises `UserError` where a latent is named without the layer that it needs, none has that name, a dictionary has no
    latents that can be edited, and where heads are named that are not there.
    """
    if not edits:
        return list(splices)
    _check_names(splices, edits)
    shared = _edited_cross_layer(splices, edits)
    return [_with_edits(architecture, splice, edits, shared) for splice in splices]


def _with_edits(
    architecture: Architecture, splice: Splice, edits: LatentEdits, shared: Mapping[int, CrossLayerLatents]
) -> Splice:
    dictionary, of_layer = splice.dictionary, splice.dictionary.cross_layer
    own = edits.of_layer(splice.site_in.layer)
    if of_layer is not None:
        if not any(id(latents) in shared for latents in of_layer.sources):
            return splice
        output = of_layer.of_latents([shared.get(id(latents), latents) for latents in of_layer.sources])
        edited_dictionary = replace(
            dictionary,
            name=f"{dictionary.name} ({edits})",
            module=output,
            reconstruct=output.forward,
            encode=output.sources[-1].forward,
            decode=output.decode,
            formula=None,
            cross_layer=output,
            latent_module=None,
        )
    else:
        edited_dictionary = edited(dictionary, own)
        if edited_dictionary is dictionary:
            return splice
    columns = _columns(architecture, splice, edits.heads) if edits.heads else None
    return replace(splice, dictionary=edited_dictionary, unedited=dictionary, edits=edits, edited_columns=columns)


def _edited_cross_layer(splices: Iterable[Splice], edits: LatentEdits) -> dict[int, CrossLayerLatents]:
    """By the id of latents of cross-layer transcoders what takes their place at every layer where they write."""
    out: dict[int, CrossLayerLatents] = {}
    for splice in splices:
        for latents, layer in _sources(splice):
            own = edits.of_layer(layer)
            if isinstance(latents, CrossLayerLatents) and own and id(latents) not in out:
                own.check_width(f"Layer {layer} of the transcoder of {splice.dictionary.name}", latents.b_enc.shape[0])
                out[id(latents)] = latents.edited(own)
    return out


def _sources(splice: Splice) -> list[tuple[Any, int | None]]:
    """What has latents that write at a splice, with the layers at which they read."""
    of_layer = splice.dictionary.cross_layer
    if of_layer is None:
        return [(splice.dictionary, splice.site_in.layer)]
    sites = (*splice.earlier, splice.site_in)
    return [(latents, site.layer) for latents, site in zip(of_layer.sources, sites, strict=True)]


def _check_names(splices: Sequence[Splice], edits: LatentEdits) -> None:
    layer_by_source = {id(source): layer for splice in splices for source, layer in _sources(splice)}
    layers = list(layer_by_source.values())
    at = ", ".join(str(layer) for layer in sorted({layer for layer in layers if layer is not None})) or "no layer"
    for latent in edits.latents:
        if latent.layer is None and len(layers) > 1:
            named = [layer for layer in layers if layer is not None]
            how = f"write its layer before it, as in {named[0]}/{latent}" if named else "edit those of one"
            raise UserError(f"Latent {latent} may be one of {len(layers)} dictionaries, which read at {at}: {how}.")
        if latent.layer is not None and layers.count(latent.layer) != 1:
            count = layers.count(latent.layer)
            what = f"{count} dictionaries read" if count else "no dictionary reads"
            raise UserError(f"Latent {latent}: {what} at layer {latent.layer}; they read at {at}.")


def _columns(architecture: Architecture, splice: Splice, heads: Sequence[int]) -> Bool[Tensor, " d_out"]:
    """Which of the values that the dictionary writes are those of `heads`."""
    site, name = splice.site_out, architecture.name
    if site.write not in [architecture.port(HEADS, layer) for layer in range(architecture.layers)]:
        raise UserError(
            f"latent_heads= is for dictionaries of attention's heads, at {HEADS}, and '{site.hook}' has none."
        )
    count = cast(Any, architecture.model.config).get_text_config().num_attention_heads
    if beyond := [head for head in heads if head >= count]:
        raise UserError(f"latent_heads= names head {beyond[0]}: the heads of {name} run from 0 to {count - 1}.")
    of_head = torch.arange(splice.dictionary.widths[1]) // (splice.dictionary.widths[1] // count)
    return torch.isin(of_head, torch.tensor(heads))
