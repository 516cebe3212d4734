"""What would be spliced where, what a release says of itself, and how well each activation map fits a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load_as_released, load_dictionary
from sae_lm_eval.dictionaries.trial import tried
from sae_lm_eval.errors import UserError
from sae_lm_eval.harness.fit import Fit, fits_of, not_met
from sae_lm_eval.harness.model import KNOWN, SaeHFLM
from sae_lm_eval.runtime import text_files
from sae_lm_eval.scoring.spliced_model import SplicedModel
from sae_lm_eval.splicing.activations import passing
from sae_lm_eval.splicing.arguments import dtype_of, sources_of
from sae_lm_eval.splicing.choices import choices_of, refuse_misspelt
from sae_lm_eval.splicing.edit_spec import refuse_edit
from sae_lm_eval.splicing.skeleton import skeleton
from sae_lm_eval.splicing.splice import Splice, Variant
from sae_lm_eval.splicing.splice_arguments import LATENT_EDITS, SpliceArguments
from sae_lm_eval.splicing.variants import build_variant


def planned_variant(model_args: Mapping[str, Any]) -> Variant:
    """The variant that `--model_args` describe, from the model's configuration alone: no weights of it are loaded.

    Raises `UserError` for all that `lm_eval --model sae_hf` would refuse of sites and dictionaries.
    """
    refuse_misspelt(model_args, KNOWN)
    model = skeleton(model_args)
    dtype = dtype_of(model_args.get("sae_dtype", SpliceArguments.sae_dtype))
    arguments = SpliceArguments(**SpliceArguments.among(model_args))
    refuse_edit(arguments)
    choices = choices_of(arguments)
    if choices.layers is not None and choices.layers.best is not None:
        raise UserError(f"splice_layers={choices.layers} is settled by running the model, which inspect does not load.")
    dictionaries = _as_released(model_args)
    for dictionary in dictionaries:
        dictionary.module.to(dtype=dtype).eval()
    dictionaries = [tried(d) if d.d_in is not None else d for d in dictionaries]
    return build_variant(model, dictionaries, choices, frozenset())


def splice_facts(splice: Splice, special: str) -> dict[str, str]:
    """What a reader has to know of a splice, as label and text; what the release does not say is said to be missing."""
    dictionary = splice.dictionary
    parameters = sum(p.numel() for p in dictionary.module.parameters())
    if dictionary.cross_layer is not None:
        parameters = dictionary.cross_layer.parameter_count
    writes = str(splice.site_out.write)
    if splice.site_out.residual is not None:
        writes += f", less {splice.site_out.residual}"
    return {
        "architecture": dictionary.architecture,
        "revision": dictionary.revision or "a local folder or object",
        "reads": f"{splice.site_in.hook} = {splice.site_in.read}, (..., {dictionary.d_in})",
        "writes": f"{splice.site_out.hook} = {writes}, (..., {dictionary.d_out})",
        "activation map": f"{splice.map_in.name} -> {splice.map_out.name}",
        "positions": positions(splice, special),
        "latents": "none" if dictionary.d_dictionary is None else f"{dictionary.d_dictionary:,}",
        "parameters": f"{parameters:,} in {str(dictionary.dtype).removeprefix('torch.')}",
        "trained on": f"{' or '.join(dictionary.model_names) or '?'}, context {dictionary.context_size or '?'}, "
        f"behind BOS: {dictionary.prepend_bos if dictionary.prepend_bos is not None else 'not stated'}",
        "model loaded": loading_of(dictionary),
        "not stated": ", ".join(dictionary.not_stated) or "nothing",
        "normalisation": "unknown factor: norm_factor= is needed"
        if dictionary.needs_norm_factor
        else "none left to apply",
        "stated": ", ".join(f"{name} {value:.4g}" for name, value in dictionary.stated.items()) or "no numbers",
        "remarks": "; ".join(dictionary.remarks) or "none",
    }


def positions(splice: Splice, special: str) -> str:
    """Where the dictionary is spliced in; `special` says what is done at special tokens."""
    first, trained = splice.first_position, splice.dictionary.first_position or 0
    said = special if not first else f"{special}; so do the first {first}"
    return said if not trained else f"{said}; it was not trained on the first {trained}"


def loading_of(dictionary: Dictionary) -> str:
    """How TransformerLens loaded the model that the dictionary was trained on, and who says so."""
    if "processing" in dictionary.not_stated:
        return "not stated: taken as it is"
    options = ", ".join(f"{name}={value}" for name, value in dictionary.processing.items())
    by = f" (by {dictionary.processing_source})" if dictionary.processing_source else ""
    return f"{options or 'as it is'}{by}"


def fits(model_args: Mapping[str, Any], path: str, tokens: int) -> tuple[list[list[Fit]], list[float | str | None]]:
    """For each dictionary the fit of every map that its site allows, the chosen one first, on a text of the user's.

    Fits are those of dictionaries without any edits of their latents.

    The chosen one says whether its numbers are those of the release and, if not, what would make them so. Second, for
    each dictionary that was trained on normalised activations without saying by how much, the norm_factor
    sqrt(d_in) / E|x| that this text gives, IN:OUT for a transcoder; the fits are then with it.
    """
    replaced = ("sae", "norm_factor", "splice", "mean_text", "mean_tokens", *LATENT_EDITS)
    own = {name: value for name, value in model_args.items() if name not in replaced}
    dictionaries = _as_released(model_args)
    factors: list[float | str | None] = [None] * len(dictionaries)
    if any(dictionary.needs_norm_factor for dictionary in dictionaries):
        # To find the sites any factor serves; the text then gives the right one.
        model, texts = _reader(
            own, [_with_factor(d, "1:1" if d.is_transcoder else 1.0) for d in dictionaries], path, tokens
        )
        norms = _mean_norms(model, texts)
        dictionaries = _as_released(model_args)
        factors = [
            _factor(d, *means) if d.needs_norm_factor else None for d, means in zip(dictionaries, norms, strict=True)
        ]
        dictionaries = [_with_factor(d, factor) for d, factor in zip(dictionaries, factors, strict=True)]
    model, texts = _reader(own, dictionaries, path, tokens)
    special = model.tokens.special_ids | model.variant.special_ids
    return [fits_of(model.model, splice, texts, special) for splice in model.variant.splices], factors


def _as_released(model_args: Mapping[str, Any]) -> list[Dictionary]:
    return [dictionary for source in sources_of(model_args.get("sae")) for dictionary in load_as_released(source)]


def _factor(dictionary: Dictionary, norm_in: float, norm_out: float) -> float | str:
    d_in, d_out = dictionary.widths
    factor = d_in**0.5 / norm_in
    return f"{factor:.6g}:{d_out**0.5 / norm_out:.6g}" if dictionary.is_transcoder else factor


def _with_factor(dictionary: Dictionary, factor: float | str | None) -> Dictionary:
    return load_dictionary(dictionary, norm_factor=factor if dictionary.needs_norm_factor else None)


def _reader(
    own: Mapping[str, Any], dictionaries: Sequence[Dictionary], path: str, tokens: int
) -> tuple[SplicedModel, list[list[int]]]:
    model = SaeHFLM(**{**own, "sae": list(dictionaries), "splice": "none"}).spliced
    return model, model.windows(text_files.read_documents(path, tokens=tokens), tokens)


def _mean_norms(model: SplicedModel, texts: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
    """Of what each dictionary reads and stands for."""
    out = []
    special = model.tokens.special_ids | model.variant.special_ids
    for splice in model.variant.splices:
        ports = list(dict.fromkeys((splice.site_in.read, splice.site_out.read)))
        first = dict.fromkeys(ports, splice.first_position)
        sums, count = dict.fromkeys(ports, 0.0), 0
        for seen in passing(model.model, ports, texts, special, first):
            count += max((len(x) for x in seen.values()), default=0)
            for port, x in seen.items():
                sums[port] += float(x.double().norm(dim=-1).sum())
        if not count:
            raise UserError(not_met(splice, texts, special))
        out.append((sums[splice.site_in.read] / count, sums[splice.site_out.read] / count))
    return out
