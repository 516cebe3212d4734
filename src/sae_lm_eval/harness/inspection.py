"""What would be spliced where, what a release says of itself, and how well each activation map fits a text."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# (lm_eval's @register_model hides the adapter from type checkers.)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import find, load
from sae_lm_eval.errors import UserError
from sae_lm_eval.harness.model import KNOWN, SaeHFLM, innermost
from sae_lm_eval.runtime import text_files
from sae_lm_eval.splicing.activation_map import MAPS, build_map
from sae_lm_eval.splicing.activations import passing
from sae_lm_eval.splicing.arguments import choices_of, dtype_of, refuse_misspelt, sources_of
from sae_lm_eval.splicing.hook_names import Architecture
from sae_lm_eval.splicing.skeleton import skeleton
from sae_lm_eval.splicing.splice import Splice, Variant
from sae_lm_eval.splicing.variants import build_variant

CHOICES = ("splice", "splice_tokens", "hook", "hook_map", "seed", "scale")


@dataclass(frozen=True)
class Fit:
    """How well one activation map fits: fractions of variance and elements a position, over `tokens` positions."""

    map: str
    explained_variance: float
    l0: float
    tokens: int


def plan(model_args: Mapping[str, Any]) -> Variant:
    """The variant that `--model_args` describe, from the model's configuration alone: no weights of it are loaded.

    Raises `UserError` for all that `lm_eval --model sae_hf` would refuse of sites and dictionaries.
    """
    refuse_misspelt(model_args, KNOWN)
    model = skeleton(model_args)
    dtype = dtype_of(model_args.get("sae_dtype", "float32"))
    choices = choices_of(**{name: value for name, value in model_args.items() if name in CHOICES})
    dictionaries = [find(source) for source in sources_of(model_args.get("sae"))]
    for dictionary in dictionaries:
        dictionary.module.to(dtype=dtype)
    return build_variant(model, dictionaries, choices, frozenset())


def facts(splice: Splice, special: str) -> dict[str, str]:
    """What a reader has to know of a splice, as label and text; what the release does not say is said to be missing."""
    dictionary = splice.dictionary
    parameters = sum(p.numel() for p in dictionary.module.parameters())
    writes = str(splice.site_out.write)
    if splice.site_out.residual is not None:
        writes += f", less {splice.site_out.residual}"
    return {
        "architecture": dictionary.architecture,
        "revision": dictionary.revision or "a local folder or object",
        "reads": f"{splice.site_in.hook} = {splice.site_in.read}, (..., {dictionary.d_in})",
        "writes": f"{splice.site_out.hook} = {writes}, (..., {dictionary.d_out})",
        "activation map": f"{splice.map_in.name} -> {splice.map_out.name}",
        "positions": special,
        "elements": f"{dictionary.d_dictionary:,}",
        "parameters": f"{parameters:,} in {str(dictionary.dtype).removeprefix('torch.')}",
        "trained on": f"{' or '.join(dictionary.model_names) or '?'}, context {dictionary.context_size or '?'}, "
        f"behind BOS: {dictionary.prepend_bos if dictionary.prepend_bos is not None else 'not stated'}",
        "model loaded": loading_of(dictionary),
        "not stated": ", ".join(dictionary.not_stated) or "nothing",
        "normalisation": "unknown factor: norm_factor= is needed"
        if dictionary.needs_norm_factor
        else "none left to apply",
        "remarks": "; ".join(dictionary.remarks) or "none",
    }


def loading_of(dictionary: Dictionary) -> str:
    """How TransformerLens loaded the model that the dictionary was trained on, and who says so."""
    if "processing" in dictionary.not_stated:
        return "not stated: taken as it is"
    options = ", ".join(f"{name}={value}" for name, value in dictionary.processing.items())
    by = f" (by {dictionary.processing_source})" if dictionary.processing_source else ""
    return f"{options or 'as it is'}{by}"


def fits(model_args: Mapping[str, Any], path: str, tokens: int) -> tuple[list[list[Fit]], list[float | None]]:
    """For each dictionary the fit of every map that its site allows, the chosen one first, on a text of the user's.

    Second, for each dictionary that was trained on normalised activations without saying by how much, the factor
    sqrt(d_in) / E|x| that this text gives; the fits are then with it.
    """
    replaced = ("sae", "norm_factor", "splice", "mean_text", "mean_tokens")
    own = {name: value for name, value in model_args.items() if name not in replaced}
    found = [find(source) for source in sources_of(model_args.get("sae"))]
    factors: list[float | None] = [None] * len(found)
    if any(dictionary.needs_norm_factor for dictionary in found):
        # To find the sites any factor serves; the text then gives the right one.
        lm, texts = _reader(own, [_with_factor(d, 1.0) for d in found], path, tokens)
        norms = _mean_norms(lm, texts)
        found = [find(source) for source in sources_of(model_args.get("sae"))]
        factors = [d.d_in**0.5 / norm if d.needs_norm_factor else None for d, norm in zip(found, norms, strict=True)]
        found = [_with_factor(d, f or 1.0) for d, f in zip(found, factors, strict=True)]
    lm, texts = _reader(own, found, path, tokens)
    return [_fit_maps(lm, splice, texts) for splice in lm.variant.splices], factors


def _with_factor(dictionary: Dictionary, factor: float) -> Dictionary:
    return load(dictionary, norm_factor=factor if dictionary.needs_norm_factor else None)


def _reader(
    own: Mapping[str, Any], dictionaries: Sequence[Dictionary], path: str, tokens: int
) -> tuple[SaeHFLM, list[list[int]]]:
    lm = SaeHFLM(**{**own, "sae": list(dictionaries), "splice": "none"})
    return lm, lm.windows(text_files.read_documents(path), tokens)


def _mean_norms(lm: SaeHFLM, texts: Sequence[Sequence[int]]) -> list[float]:
    ports = [splice.site_in.read for splice in lm.variant.splices]
    sums, count = dict.fromkeys(ports, 0.0), 0
    for seen in passing(innermost(lm.model), ports, texts, lm.special_ids):
        count += next(iter(seen.values())).shape[0]
        for port, x in seen.items():
            sums[port] += float(x.double().norm(dim=-1).sum())
    return [sums[port] / count for port in ports]


def _fit_maps(lm: SaeHFLM, splice: Splice, texts: Sequence[Sequence[int]]) -> list[Fit]:
    """Explained variance is 1 - E|y - z|^2 / (E|y|^2 - |E y|^2), L0 the mean number of elements that are not zero."""
    model = innermost(lm.model)
    candidates = {splice.map_out.name: splice}
    for name in MAPS:
        try:
            maps = [build_map(Architecture(model), site, name) for site in (splice.site_in, splice.site_out)]
        except UserError:
            continue  # a map that makes no sense at this site
        candidates.setdefault(name, replace(splice, map_in=maps[0], map_out=maps[1]))
    ports = [splice.site_in.read, splice.site_out.read]
    totals = {name: torch.zeros(2, dtype=torch.float64) for name in candidates}
    count, square, total = 0, 0.0, torch.zeros(splice.dictionary.d_out, dtype=torch.float64)
    for seen in passing(model, ports, texts, lm.special_ids):
        x, y = (seen[port] for port in ports)
        count += y.shape[0]
        square += float(y.double().pow(2).sum())
        total += y.double().sum(0).cpu()
        for name, candidate in candidates.items():
            totals[name] += _misses(candidate, x, y)
    variance = square / count - float((total / count).pow(2).sum())
    return [
        Fit(name, 1 - float(missed) / count / variance, float(active) / count, count)
        for name, (missed, active) in totals.items()
    ]


@torch.no_grad()
def _misses(splice: Splice, x: Tensor, y: Tensor) -> Tensor:
    """Summed over positions: the squared error, and the number of active elements; (2,) in float64."""
    dictionary = splice.dictionary
    z = splice.reconstruct(x[None], y[None])[0]
    active = dictionary.encode(splice.map_in.there(x.to(dictionary.device, dictionary.dtype))[None])
    return torch.tensor([float((z - y.to(z)).double().pow(2).sum()), float((active != 0).sum())], dtype=torch.float64)
