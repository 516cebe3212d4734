"""Effective compute: what share of the training compute buys the loss of the spliced model.

A *law* (`laws`) or a measured *family* (`family`) is a curve from compute to loss. A `DeltaCE` (`delta`)
and an `Original` (`models`) are placed on it; `effective_compute` returns every definition side by side.
Nothing here imports torch or lm_eval.
"""

from sae_lm_eval.scaling.delta import (
    DeltaCE,
    delta_from_documents,
    delta_from_loss_recovered,
    delta_from_losses,
    read_document_losses,
)
from sae_lm_eval.scaling.effective import EffectiveCompute, effective_compute
from sae_lm_eval.scaling.estimate import Estimate, Interval
from sae_lm_eval.scaling.family import Family, builtin_families, read_family
from sae_lm_eval.scaling.fit import fit_compute_law, fit_parametric_law
from sae_lm_eval.scaling.laws import ComputeLaw, Covariance, Law, ParametricLaw, get_law, laws
from sae_lm_eval.scaling.literature import cited_works, convert_literature, summarise_literature
from sae_lm_eval.scaling.original_model import Original, find_preset, get_original, presets

__all__ = [
    "ComputeLaw",
    "Covariance",
    "DeltaCE",
    "EffectiveCompute",
    "Estimate",
    "Family",
    "Interval",
    "Law",
    "Original",
    "ParametricLaw",
    "builtin_families",
    "cited_works",
    "convert_literature",
    "delta_from_documents",
    "delta_from_loss_recovered",
    "delta_from_losses",
    "effective_compute",
    "find_preset",
    "fit_compute_law",
    "fit_parametric_law",
    "get_law",
    "get_original",
    "laws",
    "presets",
    "read_document_losses",
    "read_family",
    "summarise_literature",
]
