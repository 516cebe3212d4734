"""Loaders, by name, that turn a spec into one kind of thing: a `Dictionary`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from sae_lm_eval.dictionaries import saelens_loader, sparsify_loader
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.dictionaries.trial import tried
from sae_lm_eval.errors import UserError


def load(source: Any, *, dtype: torch.dtype = torch.float32, norm_factor: float | str | None = None) -> Dictionary:
    """The dictionary that `source` is or names: a spec as text or value, a SAELens SAE, a sparsify coder, a Dictionary.

    `norm_factor` is what activations were multiplied by in training, for releases that normalised them and do
    not say by how much; `IN:OUT` for a transcoder, one for each of its sites. What is loaded is tried on random
    activations: see `dictionaries.trial`.

    Raises `UserError` for whatever cannot be found, read or applied.
    """
    dictionary = find(source)
    if dictionary.needs_norm_factor:
        dictionary = _with_factors(dictionary, norm_factor)
    elif norm_factor is not None:
        raise UserError(f"{dictionary.name} needs no norm_factor: leave it out.")
    dictionary.module.to(dtype=dtype).eval().requires_grad_(False)
    return tried(dictionary)


def _with_factors(dictionary: Dictionary, norm_factor: float | str | None) -> Dictionary:
    """The dictionary with what its activations were multiplied by folded into its weights."""
    two = dictionary.is_transcoder or "transcoder" in dictionary.architecture
    form = "IN:OUT, each " if two else ""
    if norm_factor is None:
        raise UserError(
            f"{dictionary.name} was trained on normalised activations "
            f"(normalize_activations=expected_average_only_in) and its factor is not known: its output would "
            f"be silently wrong. Give norm_factor={form}sqrt(d_in)/(mean norm of the activations); "
            f"'sae-lm-eval inspect --text FILE' estimates it."
        )
    try:
        factors = [float(part) for part in str(norm_factor).split(":")]
    except ValueError:
        factors = []
    if len(factors) != 1 + two or not all(math.isfinite(f) and f > 0 for f in factors):
        what = "IN:OUT, a factor each for where it reads and where it writes" if form else "one factor above 0"
        raise UserError(f"norm_factor={norm_factor} does not fit {dictionary.name}: give {what}.")
    module: Any = dictionary.module
    if two:
        saelens_loader.fold_factors(module, *factors)
    else:
        module.fold_activation_norm_scaling_factor(*factors)
    remark = f"activations scaled by norm_factor={norm_factor}"
    return replace(dictionary, needs_norm_factor=False, remarks=(*dictionary.remarks, remark))


def find(source: Any) -> Dictionary:
    """The dictionary as it was released, in its own dtype; see `load`."""
    if isinstance(source, Dictionary):
        return source
    if isinstance(source, str):
        source = SaeSpec.parse(source)
    if isinstance(source, SaeSpec):
        return LOADERS[source.loader](source)
    for module_prefix, from_object in OBJECTS.items():
        if any(cls.__module__.startswith(module_prefix) for cls in type(source).__mro__):
            return from_object(source)
    raise UserError(
        f"A {type(source).__name__} is no dictionary. Give a spec, a SAELens SAE, a sparsify SparseCoder, "
        f"or a sae_lm_eval.Dictionary."
    )


LOADERS: dict[str, Callable[[SaeSpec], Dictionary]] = {"saelens": saelens_loader.load, "sparsify": sparsify_loader.load}
OBJECTS: dict[str, Callable[[Any], Dictionary]] = {
    "sae_lens.": lambda sae: saelens_loader.from_sae(sae, name=f"<{type(sae).__name__}>"),
    "sparsify.": lambda coder: sparsify_loader.from_coder(coder, name=f"<{type(coder).__name__}>", hookpoint=None),
}
