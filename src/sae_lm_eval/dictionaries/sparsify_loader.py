"""Dictionaries of EleutherAI's sparsify, read by its own package (the extra `sparsify`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from sae_lm_eval.dictionaries import stated
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.hub_files import refuse_other_format, weights_folder
from sae_lm_eval.dictionaries.sequential import attends_over_positions
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def load_sparsify(spec: SaeSpec) -> Dictionary:
    """Raises `UserError` where the package is missing, or the folder holds no coder of its format."""
    from safetensors import SafetensorError

    try:
        from sparsify import SparseCoder
    except ImportError as error:
        raise UserError(
            f"'{spec}' needs EleutherAI's sparsify: pip install 'sae-lm-eval[sparsify]' (the package eai-sparsify)."
        ) from error
    folder, commit = weights_folder(spec, CONFIG)
    if not (folder / WEIGHTS).is_file():
        refuse_other_format(spec, (path.name for path in folder.iterdir()))
        raise UserError(f"'{spec}' has no {WEIGHTS}, which is sparsify's format; for SAELens' leave out 'sparsify:'.")
    hookpoint = folder.name if spec.id is None else spec.id.split("/")[-1]
    try:
        coder = SparseCoder.load_from_disk(folder)
    except SafetensorError as error:
        raise UserError(f"The weights of '{spec}' are truncated or corrupt ({error}): download them again.") from error
    except Exception as error:  # whatever a file of somebody else's makes sparsify raise
        raise_if_out_of_memory(error)
        reason = " ".join(str(error).split())
        raise UserError(f"sparsify cannot load '{spec}': {type(error).__name__}: {reason}") from error
    return replace(from_coder(coder, name=str(spec), hookpoint=hookpoint), revision=commit)


def from_coder(coder: Any, *, name: str, hookpoint: str | None) -> Dictionary:
    """`coder` (a `sparsify.SparseCoder`) as a `Dictionary`.

    `hookpoint` is a module path below the base model, as in "layers.3.mlp"; a coder reads that module's output,
    or its input where it transcodes. sparsify records no model and no BOS token with a coder.
    """

    # sparsify's kernels take rows: positions are laid one below the other.
    def encode(x: Tensor) -> Tensor:
        top = coder.encode(x.flatten(0, -2))
        dense = top.top_acts.new_zeros(len(top.top_acts), coder.num_latents)
        return dense.scatter(-1, top.top_indices, top.top_acts).unflatten(0, x.shape[:-1])

    def reconstruct(x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        top = coder.encode(rows)
        out = coder.decode(top.top_acts, top.top_indices)
        return (out if coder.W_skip is None else out + rows @ coder.W_skip.mT).unflatten(0, x.shape[:-1])

    hook_in = hook_out = hookpoint
    if hookpoint is not None and coder.cfg.transcode:
        hook_in, hook_out = f"{hookpoint}.input", f"{hookpoint}.output"
    return Dictionary(
        name=name,
        module=coder,
        reconstruct=reconstruct,
        encode=encode,
        decode=lambda latents: latents @ coder.W_dec + coder.b_dec,
        architecture="sparsify_transcoder" if coder.cfg.transcode else "sparsify",
        d_in=coder.d_in,
        d_out=coder.d_in,
        d_dictionary=coder.num_latents,
        hook_in=hook_in,
        hook_out=hook_out,
        stated=stated.of_config({"k": coder.cfg.k}, coder.d_in, coder.d_in),
        sequential=attends_over_positions(coder),
        processing_source="sparsify trains on the Hugging Face model itself",
    )
