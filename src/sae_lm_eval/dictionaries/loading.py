"""Loaders, by name, that turn a spec into one kind of thing: a `Dictionary`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from sae_lm_eval.dictionaries import saelens_loader, sparsify_loader
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.sequential import attends_over_positions
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError


def load(source: Any, *, dtype: torch.dtype = torch.float32, norm_factor: float | None = None) -> Dictionary:
    """The dictionary that `source` is or names: a spec as text or value, a SAELens SAE, a sparsify coder, a Dictionary.

    `norm_factor` is what activations were multiplied by in training, for releases that normalised them and do
    not say by how much.

    Raises `UserError` for whatever cannot be found, read or applied.
    """
    dictionary = find(source)
    if dictionary.needs_norm_factor:
        if norm_factor is None:
            raise UserError(
                f"{dictionary.name} was trained on normalised activations "
                f"(normalize_activations=expected_average_only_in) and its factor is not known: its output would "
                f"be silently wrong. Give norm_factor=sqrt(d_in)/(mean norm of the activations); "
                f"'sae-lm-eval inspect --text FILE' estimates it."
            )
        dictionary.module.fold_activation_norm_scaling_factor(norm_factor)  # pyright: ignore[reportCallIssue]
        dictionary = replace(
            dictionary,
            needs_norm_factor=False,
            remarks=(*dictionary.remarks, f"activations scaled by norm_factor={norm_factor}"),
        )
    elif norm_factor is not None:
        raise UserError(f"{dictionary.name} needs no norm_factor: leave it out.")
    dictionary.module.to(dtype=dtype).eval().requires_grad_(False)
    return dictionary


def find(source: Any) -> Dictionary:
    """The dictionary as it was released, in its own dtype; see `load`."""
    if isinstance(source, Dictionary):
        forgotten = not source.sequential and attends_over_positions(source.module)
        return replace(source, sequential=True) if forgotten else source
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
