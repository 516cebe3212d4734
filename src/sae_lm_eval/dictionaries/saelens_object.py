"""SAELens' own objects as dictionaries, however they were loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sae_lm_eval.dictionaries import stated
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.inference_form import inference_form
from sae_lm_eval.dictionaries.model_names import distinct_models
from sae_lm_eval.dictionaries.sequential import attends_over_positions
from sae_lm_eval.dictionaries.sparse_decoding import SparseDecoding
from sae_lm_eval.dictionaries.untrained import first_of_slice, rule_by_metadata, tokens_left_out
from sae_lm_eval.errors import UserError

NO_FACTOR = "expected_average_only_in"
# How SAELens names normalisations that it applies by itself; any other needs numbers that are not in the file.
APPLIED = ("none", "layer_norm", "constant_norm_rescale", "constant_scalar_rescale")


def from_sae(
    sae: Any, *, name: str, model_name: str | None = None, own_config: Mapping[str, Any] | None = None
) -> Dictionary:
    """`sae` (a `sae_lens.SAE` of any architecture) as a `Dictionary`.

    `own_config` is its own configuration, before SAELens filled its gaps; None where `sae` was given as an object.

    Calling the SAE itself keeps the skip connection of skip transcoders and the predictions of temporal SAEs,
    which `decode(encode(x))` would lose.

    Raises `UserError` where the SAE normalises its input by numbers that it does not hold.
    """
    sae, remarks = inference_form(sae)
    config, metadata = sae.cfg, sae.cfg.metadata.to_dict()
    _refuse_what_cannot_be_spliced(name, config.normalize_activations, metadata.get("hook_head_index"))
    if sae.hook_z_reshaping_mode:
        # On the Hugging Face side z is already flat over heads.
        sae.turn_off_forward_pass_hook_z_reshaping()

    def reconstruct(x: Any) -> Any:
        with SparseDecoding(sae.W_dec), without_error_term(sae):
            return sae(x)

    hook_in = metadata.get("hook_name")
    hook_out = metadata.get("hook_name_out") or hook_in
    names, conflict = _model_names(metadata, model_name)
    d_in, d_out = config.d_in, getattr(config, "d_out", config.d_in)
    rule, sequential = rule_by_metadata(metadata), attends_over_positions(sae)
    processing, processing_source = _processing(metadata, own_config)
    return Dictionary(
        name=name,
        module=sae,
        reconstruct=reconstruct,
        encode=sae.encode,
        decode=sae.decode,
        architecture=config.architecture(),
        d_in=d_in,
        d_out=d_out,
        d_dictionary=config.d_sae,
        hook_in=hook_in,
        hook_out=hook_out,
        module_hook_in=metadata.get("hf_hook_name"),
        module_hook_out=metadata.get("hf_hook_name_out")
        or (None if hook_out != hook_in else metadata.get("hf_hook_name")),
        model_names=names,
        context_size=metadata.get("context_size"),
        prepend_bos=_prepend_bos(metadata, own_config),
        processing=processing,
        processing_source=processing_source,
        needs_norm_factor=config.normalize_activations == NO_FACTOR,
        sequential=sequential,
        latent_module=sae.hook_sae_acts_post,
        formula=None if sequential else _formula(sae),
        stated=stated.of_config({"k": getattr(config, "k", None), **metadata}, d_in, d_out),
        remarks=(*remarks, *conflict),
        first_position=first_of_slice(metadata) if rule is None else rule.first,
        untrained_tokens=tokens_left_out(metadata),
        neuronpedia=metadata.get("neuronpedia_id"),
    )


def _model_names(metadata: Mapping[str, Any], of_release: str | None) -> tuple[tuple[str, ...], list[str]]:
    """The models that it is said to be trained on, and a remark where its metadata and the release differ."""
    names = tuple(name for name in (metadata.get("model_name"), of_release) if name)
    if len(distinct_models(names)) < 2:
        return names[:1], []
    return names, [f"its metadata says its model is {names[0]}, the release {names[1]}"]


def _formula(sae: Any) -> Callable[[Tensor], Tensor]:
    """What the weights make of activations by themselves, whatever is put around the SAE's own `forward`."""

    def formula(x: Tensor) -> Tensor:
        skip = getattr(sae, "W_skip", None)
        out = sae.decode(sae.encode(x))
        return out if skip is None else out + x @ skip.mT

    return formula


def _refuse_what_cannot_be_spliced(name: str, normalisation: str, head: int | None) -> None:
    if normalisation not in (*APPLIED, NO_FACTOR):
        raise UserError(
            f"{name} was trained with normalize_activations={normalisation}, which has to be folded "
            f"into its weights before use: sae.fold_activation_whitening(...) and save it again."
        )
    if head is not None:
        raise UserError(f"{name} was trained on head {head} alone; dictionaries are spliced at all heads of a layer.")


@contextmanager
def without_error_term(sae: Any) -> Iterator[None]:
    """Inside the scope, `sae` gives its reconstruction alone, even where it was told to add its error."""
    if not sae.use_error_term:
        yield
        return
    sae.use_error_term = False
    try:
        yield
    finally:
        with warnings.catch_warnings():  # SAELens warns of every use
            warnings.simplefilter("ignore", DeprecationWarning)
            sae.use_error_term = True


@torch.no_grad()
def fold_factors(transcoder: Any, factor_in: float, factor_out: float) -> None:
    """Fold into the weights what activations were multiplied by in training where it reads and where it writes.

    SAELens folds one factor into both, and a transcoder's two sites have norms of their own.
    """
    transcoder.W_enc.mul_(factor_in)
    transcoder.W_dec.div_(factor_out)
    transcoder.b_dec.div_(factor_out)
    if (skip := getattr(transcoder, "W_skip", None)) is not None:
        skip.mul_(factor_in / factor_out)
    transcoder.cfg.normalize_activations = "none"


def _prepend_bos(metadata: Mapping[str, Any], own_config: Mapping[str, Any] | None) -> bool | None:
    """What the file or the author of the SAE says; SAELens puts True where nothing is said."""
    if own_config is not None:
        return {**own_config, **(own_config.get("metadata") or {})}.get("prepend_bos")
    answer = metadata.get("prepend_bos")
    # An object that SAELens made of foreign or old files, which say by which version it was trained, or do not.
    return None if answer and metadata.get("sae_lens_training_version") is None else answer


def _processing(metadata: Mapping[str, Any], own_config: Mapping[str, Any] | None) -> tuple[dict[str, Any], str | None]:
    """How TransformerLens loaded the model the SAE was trained on, and who says so: None where nobody does."""
    kwargs = metadata.get("model_from_pretrained_kwargs")
    by_file = {**(own_config or {}), **((own_config or {}).get("metadata") or {})}
    if kwargs is not None:
        if own_config is None or "model_from_pretrained_kwargs" in by_file:
            return dict(kwargs), "its metadata"
        return dict(kwargs), "SAELens' converter"
    if metadata.get("model_class_name") == "AutoModelForCausalLM":
        return {}, "its metadata: trained on the Hugging Face model itself"
    return {}, None
