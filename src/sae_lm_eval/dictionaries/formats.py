"""The formats in which dictionaries are released, told by their files: the weights of no two have one name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from sae_lm_eval.dictionaries.spec import CROSS_LAYER, SaeSpec

OWN_FORMAT = "convert it to SAELens' format, or give it from Python as a sae_lm_eval.Dictionary"
REGISTERED = f"those that SAELens has registered are named by release#id; any other: {OWN_FORMAT}"


class FolderFormat(NamedTuple):
    """A format, the globs of file names that only its folders hold, the loader that reads it, None for none, and the
    form of the ids of dictionaries in a folder that holds several.
    """

    name: str
    files: tuple[str, ...]
    loader: str | None = None
    ids: str | None = None


SAELENS = FolderFormat("SAELens", ("sae_weights.safetensors", "sparsity.safetensors"), "saelens")
SPARSIFY = FolderFormat("sparsify", ("sae.safetensors",), "sparsify")
DICTIONARY_LEARNING = FolderFormat("dictionary_learning", ("ae.pt",), "dictionary_learning")
LLAMA_SCOPE = FolderFormat("Llama Scope", ("hyperparams.json",), "llama_scope")
# In this order: a folder may hold several, and the first is what it is read as.
FORMATS = (
    SAELENS,
    SPARSIFY,
    DICTIONARY_LEARNING,
    FolderFormat("Gemma Scope", ("params.npz",)),
    FolderFormat("Gemma Scope 2", ("params.safetensors",)),
    FolderFormat("Gemma Scope 2's cross-layer transcoders", ("params_layer_*.safetensors",), CROSS_LAYER),
    LLAMA_SCOPE,
    FolderFormat("Temporal SAEs", ("latest_ckpt.safetensors",)),
    FolderFormat("Qwen-Scope", ("layer*.sae.pt",)),
    FolderFormat("circuit-tracer's cross-layer transcoders", ("W_enc_*.safetensors",), CROSS_LAYER),
    FolderFormat("circuit-tracer's transcoders", ("layer_*.safetensors",), "circuit_tracer", "layer_N"),
)


def format_of(names: Iterable[str]) -> FolderFormat | None:
    """The format of a folder that holds files of these `names`, None where none of them tells it.

    Names in folders below it, which have a '/', do not count.
    """
    names = [name for name in names if "/" not in name]  # which the * of a glob would match
    for folder_format in FORMATS:
        if any(fnmatchcase(name, glob) for glob in folder_format.files for name in names):
            return folder_format
    return None


def refusal(spec: SaeSpec, folder_format: FolderFormat) -> str:
    """Why `spec`, a folder in that format, is not read, and what to do."""
    if folder_format.loader is None:
        return f"'{spec}' is in the format of {folder_format.name}, which is not read from a folder: {REGISTERED}."
    id_ = "/".join(filter(None, (spec.id, folder_format.ids))) or None
    name = replace(spec, loader=folder_format.loader, id=id_)
    return f"'{spec}' is in the format of {folder_format.name}: name it {name}."
