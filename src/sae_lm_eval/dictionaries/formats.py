"""The formats in which dictionaries are released, told by their files: the weights of no two have one name."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

OWN_FORMAT = "convert it to SAELens' format, or give it from Python as a sae_lm_eval.Dictionary"
REGISTERED = f"those that SAELens has registered are named by release#id; any other: {OWN_FORMAT}"


class FolderFormat(NamedTuple):
    """A format, the globs of file names that only its folders hold, and what to do with such a folder."""

    name: str
    files: tuple[str, ...]
    advice: str


SAELENS = FolderFormat("SAELens", ("sae_weights.safetensors", "sparsity.safetensors"), "name it without a loader")
SPARSIFY = FolderFormat("sparsify", ("sae.safetensors",), "name it sparsify:")
# In this order: a folder may hold several, and the first is what it is read as.
FORMATS = (
    SAELENS,
    SPARSIFY,
    FolderFormat("dictionary_learning", ("ae.pt",), REGISTERED),
    FolderFormat("Gemma Scope", ("params.npz",), REGISTERED),
    FolderFormat("Gemma Scope 2", ("params.safetensors", "params_layer_*.safetensors"), REGISTERED),
    FolderFormat("Llama Scope", ("hyperparams.json",), REGISTERED),
    FolderFormat("Temporal SAEs", ("latest_ckpt.safetensors",), REGISTERED),
    FolderFormat("Qwen-Scope", ("layer*.sae.pt",), REGISTERED),
    FolderFormat("circuit-tracer's cross-layer transcoders", ("W_enc_*.safetensors",), REGISTERED),
    FolderFormat("circuit-tracer's transcoders", ("layer_*.safetensors",), REGISTERED),
)


def format_of(names: Iterable[str]) -> FolderFormat | None:
    """The format of a folder that holds files of these `names`, None where none of them tells it."""
    names = list(names)
    return next(
        (one for one in FORMATS if any(fnmatchcase(name, glob) for glob in one.files for name in names)),
        None,
    )


def refusal(spec: object, found: FolderFormat) -> str:
    """Why `spec`, a folder in the format `found`, is not read, and what to do."""
    return f"'{spec}' is in the format of {found.name}, which is not read from a folder: {found.advice}."
