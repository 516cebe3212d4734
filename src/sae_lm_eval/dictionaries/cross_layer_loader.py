"""Whole cross-layer transcoders: circuit-tracer's `W_enc_N` and `W_dec_N`, and Gemma Scope 2's `params_layer_N`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import psutil
from torch import Tensor

from sae_lm_eval.dictionaries.circuit_tracer_loader import PROCESSING, SOURCE
from sae_lm_eval.dictionaries.cross_layer import CrossLayerLatents, CrossLayerOutput, FileRows
from sae_lm_eval.dictionaries.cross_layer_files import (
    CIRCUIT_TRACER,
    GEMMA_SCOPE_2,
    PLACES,
    CrossLayerConfiguration,
    CrossLayerPlace,
    FileLayout,
    find_cross_layer,
)
from sae_lm_eval.dictionaries.dictionary import Dictionary, SitePair
from sae_lm_eval.dictionaries.hub_files import read_safetensors
from sae_lm_eval.dictionaries.saelens_reads import shapes_in
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError

IN_MEMORY = 0.5  # of the machine's memory: decoders that would take more in float32 stay in their files
# By what stands behind the layer in a module path of Gemma Scope 2's: the hook that this is in TransformerLens.
HOOKS = {
    "output": "hook_resid_post",
    "pre_feedforward_layernorm.output": "hook_mlp_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}


def load_cross_layer(spec: SaeSpec) -> tuple[Dictionary, ...]:
    """What a cross-layer transcoder writes at each layer, from the first on; `layer_N` behind the id is that one alone,
    `layer_N-M` those.

    Raises `UserError` for a folder or repository without one, a layer that is missing or of other widths than the
    first, a tensor that is not of the layout, and unreadable files.
    """
    place = find_cross_layer(spec)
    layout, config, layers, requested_files, _ = place.names
    count, last = len(layers), place.names.last
    first = 0 if requested_files is None else requested_files[0]
    latents: list[CrossLayerLatents] = []
    dictionaries: list[Dictionary] = []
    # Of all memory, not of what is free at the moment: it decides what the checksum of the weights is.
    kept_in_files = _decoder_bytes(place, last) > IN_MEMORY * psutil.virtual_memory().total
    for layer in range(last + 1):
        tensors = _layer(place, layer, kept_in_files)
        if not latents:
            count = _layers_written(place, tensors["W_dec"])
        _check_shapes(place, layer, count, tensors, latents)
        if dictionaries and ("W_skip" in tensors) != (dictionaries[0].module.W_skip is not None):
            raise UserError(f"'{spec}' has skip connections in some layers and none in others.")
        decoder = FileRows(tensors["W_dec"]) if kept_in_files else tensors["W_dec"]
        latents.append(CrossLayerLatents(layer, tensors["W_enc"], tensors["b_enc"], decoder, tensors.get("threshold")))
        output = CrossLayerOutput(tuple(latents), tensors["b_dec"], tensors.get("W_skip"))
        dictionaries.append(_dictionary(spec, place, output, config))
    if config.affine_connection not in (None, dictionaries[0].module.W_skip is not None):
        has = "has none" if config.affine_connection else "has one"
        said = str(config.affine_connection).lower()
        raise UserError(f"The {layout.config} of '{spec}' says affine_connection: {said}, and its first layer {has}.")
    has_thresholds = latents[0].threshold is not None
    if config.activation not in (None, "jumprelu" if has_thresholds else "relu"):
        holds = "hold" if has_thresholds else "hold no"
        raise UserError(
            f"The {layout.config} of '{spec}' says activation: {config.activation}, and its files {holds} thresholds."
        )
    return tuple(dictionaries[first:])


def _decoder_bytes(place: CrossLayerPlace, last: int) -> int:
    """Of the decoders up to layer `last`, in float32."""
    from safetensors import SafetensorError

    total = 0
    for layer in range(last + 1):
        try:
            shapes = shapes_in(place.file(place.names.layout.decoder, layer))
        except SafetensorError:
            continue  # which is told when it is read
        total += 4 * prod(shapes.get(place.names.layout.tensors["W_dec"].format(layer), ()))
    return total


def _layers_written(place: CrossLayerPlace, decoder: Tensor) -> int:
    """How many layers there are, by what the first one writes: of a hub the files may have been taken in part."""
    there = len(place.names.layers)
    if place.names.requested_files is None and decoder.shape[1] != there:
        raise UserError(
            f"The first layer of '{place.spec}' writes at {decoder.shape[1]} layers, and there are files of {there}."
        )
    return decoder.shape[1]


def _layer(place: CrossLayerPlace, layer: int, kept_in_files: bool) -> dict[str, Tensor]:
    """The tensors of a layer by our names: W_enc (d_in, latents), W_dec (latents, layers written, d_out)."""
    layout = place.names.layout
    state_dict: dict[str, Tensor] = {}
    for kind in dict.fromkeys((layout.encoder, layout.decoder)):
        state_dict |= read_safetensors(place.spec, place.file(kind, layer))
    names = {ours: theirs.format(layer) for ours, theirs in {**layout.tensors, **layout.optional}.items()}
    if missing := [names[ours] for ours in layout.tensors if names[ours] not in state_dict]:
        raise UserError(f"Layer {layer} of '{place.spec}' has no tensor '{missing[0]}'.")
    if unknown := sorted(state_dict.keys() - set(names.values())):
        raise UserError(
            f"Layer {layer} of '{place.spec}' has a tensor '{unknown[0]}', which {layout.name}'s layout does not have."
        )
    tensors = {ours: state_dict[theirs] for ours, theirs in names.items() if theirs in state_dict}
    axes = {"W_enc": 2, "b_enc": 1, "b_dec": 1, "W_dec": 3, "threshold": 1, "W_skip": 2}
    if odd := [ours for ours, tensor in tensors.items() if tensor.ndim != axes[ours]]:
        raise UserError(
            f"The tensor '{names[odd[0]]}' of layer {layer} of '{place.spec}' has {tensors[odd[0]].ndim} axes, where "
            f"{axes[odd[0]]} are expected."
        )
    if layout is CIRCUIT_TRACER:
        tensors["W_enc"] = tensors["W_enc"].mT.contiguous()
    else:
        tensors["W_dec"] = tensors["W_dec"][:, layer:]  # of the earlier layers nothing can be written any more
        tensors["W_dec"] = tensors["W_dec"] if kept_in_files else tensors["W_dec"].contiguous()
    return tensors


def _check_shapes(
    place: CrossLayerPlace, layer: int, count: int, tensors: Mapping[str, Tensor], earlier: Sequence[CrossLayerLatents]
) -> None:
    """Raise `UserError` for a layer whose tensors do not fit each other, or not those of the first layer."""
    width, latents = tensors["W_enc"].shape
    first_width = earlier[0].W_enc.shape[0] if earlier else width
    d_out = tensors["b_dec"].shape[0] if not earlier else earlier[0].decoder.shape[-1]
    expected = {
        "W_enc": (first_width, latents),
        "b_enc": (latents,),
        "b_dec": (d_out,),
        "W_dec": (latents, count - layer, d_out),
        "threshold": (latents,),
        "W_skip": (first_width, d_out),
    }
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            theirs = {**place.names.layout.tensors, **place.names.layout.optional}[name].format(layer)
            raise UserError(
                f"The tensor '{theirs}' of layer {layer} of '{place.spec}' does not fit: as {name} it is "
                f"{tuple(tensor.shape)}, where {expected[name]} is expected."
            )
        if not tensor.is_floating_point():
            raise UserError(f"The tensor '{name}' of layer {layer} of '{place.spec}' holds {tensor.dtype}.")
    if earlier and (earlier[0].threshold is None) != ("threshold" not in tensors):
        raise UserError(f"'{place.spec}' has thresholds in some layers and none in others.")
    if latents and not all(bool(tensor.isfinite().all()) for name, tensor in tensors.items() if name != "W_dec"):
        raise UserError(f"Layer {layer} of '{place.spec}' holds nan or infinite weights.")


def _dictionary(
    spec: SaeSpec, place: CrossLayerPlace, output: CrossLayerOutput, config: CrossLayerConfiguration
) -> Dictionary:
    own, layer = output.sources[-1], output.layer
    gemma = place.names.layout is GEMMA_SCOPE_2
    layers = place.names.layers
    pairs = [site_pair(place.names.layout, config, n) for n in layers[: layer + 1]]
    kind = "skip_" if output.W_skip is not None else ""
    kind += "crosscoder" if pairs[-1].hook_in == pairs[-1].hook_out else "cross_layer_transcoder"
    id_ = "/".join(filter(None, (place.names.id, f"layer_{layers[layer]}")))
    name = config.model_name
    if name is not None and gemma:
        # As SAELens' converter reads it: the configurations name Gemma 3 in their own way.
        name = name if "google" in name else f"google/{name}"
        name = name.replace("-v3", "-3")
        name = name.replace("-pt", "") if "270m" in name else name
    return Dictionary(
        name=str(replace(spec, id=id_)),
        module=output,
        reconstruct=output.forward,
        encode=own.forward,
        decode=output.decode,
        formula=output.forward,
        architecture=f"{'relu' if own.threshold is None else 'jumprelu'}_{kind}",
        d_in=own.W_enc.shape[0],
        d_out=own.decoder.shape[-1],
        d_dictionary=own.W_enc.shape[1],
        hook_in=pairs[-1].hook_in,
        hook_out=pairs[-1].hook_out,
        module_hook_in=pairs[-1].module_hook_in,
        module_hook_out=pairs[-1].module_hook_out,
        model_names=() if name is None else (name,),
        prepend_bos=True if gemma else None,
        context_size=1024 if gemma else None,
        processing={} if gemma else PROCESSING,
        processing_source="the release names modules of the Hugging Face model" if gemma else SOURCE,
        revision=place.commit,
        earlier=tuple(pairs[:-1]),
        cross_layer=output,
        latent_module=own,
        is_loaded=True,
    )


def site_pair(layout: FileLayout, config: CrossLayerConfiguration, layer: int) -> SitePair:
    """Where the latents of a layer read, and where what is written at that layer goes."""
    if layout is CIRCUIT_TRACER:
        return SitePair(*(f"blocks.{layer}.{hook}" for hook in (config.feature_input_hook, config.feature_output_hook)))
    modules = [PLACES.sub(str(layer), path) for path in (config.hf_hook_point_in, config.hf_hook_point_out)]
    behind = [path.removeprefix(f"model.layers.{layer}.") for path in modules]
    hooks = [HOOKS.get(part, usual) for part, usual in zip(behind, ("hook_mlp_in", "hook_mlp_out"), strict=True)]
    return SitePair(*(f"blocks.{layer}.{hook}" for hook in hooks), *modules)
