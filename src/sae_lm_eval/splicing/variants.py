"""Dictionaries + a model + the user's choices -> a variant, checked against the model before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.model_names import is_among
from sae_lm_eval.dictionaries.own_module import placed
from sae_lm_eval.dictionaries.untrained import SPECIAL
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.splicing.activation_map import build_map, map_name
from sae_lm_eval.splicing.choices import OF_OTHER_MODEL
from sae_lm_eval.splicing.choices import Choices as Choices
from sae_lm_eval.splicing.edited_latents import with_edits
from sae_lm_eval.splicing.hook_names import Architecture
from sae_lm_eval.splicing.module_io import ModuleSide, record_activations
from sae_lm_eval.splicing.site import Site, resolve_site, writable_port
from sae_lm_eval.splicing.splice import Splice, Variant
from sae_lm_eval.splicing.unstated import warn_of_unstated_processing

logger = logger_of(__name__)

CLEAN = "clean"  # of splice_input


def build_variant(
    model: nn.Module,
    dictionaries: Sequence[Dictionary],
    choices: Choices,
    special_ids: frozenset[int],
    declared_special: frozenset[int] = frozenset(),
) -> Variant:
    """The variant of `model` that `choices` make of `dictionaries`.

    `special_ids` keep their activation unless all positions are spliced, and with them what a dictionary was not
    trained at; `declared_special` are all that the tokenizer declares special, for those that leave these out.
    Only shapes are looked at, so a model on the meta device serves as well as one with weights.

    Raises `UserError` for a site that does not exist, cannot be written or has another width, and for two
    dictionaries at one site. Warns where a dictionary names another model.
    """
    architecture = Architecture(model)
    hooks = _one_each(choices.hooks, dictionaries, "hook")
    maps = _maps_of(choices, dictionaries)
    splices = []
    for dictionary, hook, map_ in zip(dictionaries, hooks, maps, strict=True):
        with _other_model_first(architecture, dictionary):
            splices.append(_build_splice(architecture, dictionary, hook, map_, choices))
    kept_ids = _kept_ids(dictionaries, special_ids, declared_special, choices)
    variant = Variant(tuple(splices), kept_ids, reads_clean=choices.splice_input == CLEAN)
    if variant.reads_clean:
        _check_clean(variant)
    placed_splices = list(with_widths(architecture, splices))
    variant = replace(variant, splices=tuple(with_edits(architecture, placed_splices, choices.edits)))
    for splice, map_ in zip(variant.splices, maps, strict=True):
        if is_of_other_model(architecture, splice.dictionary):
            logger.warning("%s: %s.", _trained_elsewhere(architecture, splice.dictionary), OF_OTHER_MODEL)
        if map_ is None:
            warn_of_unstated_processing(architecture, splice)
    return variant


def _check_clean(variant: Variant) -> None:
    """Raise `UserError` where what the untouched model passes cannot be had beside what is replaced."""
    for splice in variant.splices:
        if splice.site_in == splice.site_out and splice.site_out.residual is not None:
            raise UserError(
                f"splice_input=clean is not for '{splice.site_out.hook}', which no module passes whole: leave it out."
            )
        if splice.dictionary.sequential:
            raise UserError(
                f"splice_input=clean is not for {splice.dictionary.name}, which attends over positions: leave it out."
            )


def _kept_ids(
    dictionaries: Sequence[Dictionary], special_ids: frozenset[int], declared: frozenset[int], choices: Choices
) -> frozenset[int]:
    if not choices.keeps_special:
        return frozenset()
    named = [declared if d.untrained_tokens == SPECIAL else d.untrained_tokens for d in dictionaries]
    return special_ids.union(*(token for token in named if not isinstance(token, str)))


def place_dictionaries(model: nn.Module, variant: Variant) -> None:
    """Move each dictionary to the device of the module it writes at, as a sharded model has them."""
    of_all_layers: torch.device | None = None  # a cross-layer transcoder's layers share their latents
    for splice in variant.splices:
        assert splice.site_out.write is not None
        module = model.get_submodule(splice.site_out.write.path)
        device = next((p.device for p in module.parameters()), next(model.parameters()).device)
        if splice.dictionary.cross_layer is not None:
            device = of_all_layers = of_all_layers or device
        splice.dictionary.module.to(device=device)


def _maps_of(choices: Choices, dictionaries: Sequence[Dictionary]) -> Sequence[str | None]:
    """A map for each dictionary; the layers of cross-layer transcoders, whose latents they share, have one."""
    given = choices.hook_maps
    if given is None or all(dictionary.cross_layer is None for dictionary in dictionaries):
        return _one_each(given, dictionaries, "hook_map")
    if len(given) != 1:
        raise UserError(f"hook_map names {len(given)}: the layers of a cross-layer transcoder take one for all.")
    return given * len(dictionaries)


def _one_each(given: tuple[str, ...] | None, dictionaries: Sequence[Dictionary], what: str) -> Sequence[str | None]:
    if given is None:
        return [None] * len(dictionaries)
    if len(given) != len(dictionaries):
        raise UserError(
            f"{what} names {len(given)} and there are {len(dictionaries)} dictionaries: give one each, joined by '+'."
        )
    return given


def _build_splice(
    architecture: Architecture, dictionary: Dictionary, hook: str | None, map_: str | None, choices: Choices
) -> Splice:
    site_in, site_out = find_sites(architecture, dictionary, hook)
    writable_port(architecture, site_out)
    sites = (site_in, site_out)
    names = [map_name(architecture, s, dictionary.processing) if map_ is None else map_ for s in sites]
    map_in, map_out = (build_map(architecture, s, n) for s, n in zip((site_in, site_out), names, strict=True))
    how: dict[str, Any] = {"mode": str(choices.splice), "seed": choices.seed, "scale": choices.scale}
    how["first_position"] = choices.first_position(dictionary)
    pairs = dictionary.earlier
    how["earlier"] = tuple(resolve_site(architecture, pair.hook_in, pair.module_hook_in) for pair in pairs)
    return Splice(dictionary, site_in, site_out, map_in, map_out, **how)


def find_sites(architecture: Architecture, dictionary: Dictionary, hook: str | None) -> tuple[Site, Site]:
    """Where `dictionary` reads and where it writes; `hook` (`SITE` or `IN:OUT`) overrides what its release says."""
    if hook is not None:
        if dictionary.cross_layer is not None:
            raise UserError(
                f"{dictionary.name} is of a cross-layer transcoder, which reads and writes where its release says: "
                f"leave out hook=."
            )
        if not all(hook.split(":")):
            raise UserError(f"hook={hook} names no site: give one, as in hook=blocks.0.hook_resid_post.")
        hook_in, _, hook_out = hook.partition(":")
        if not hook_out and dictionary.is_transcoder:
            raise UserError(
                f"{dictionary.name} is a transcoder, which reads and writes at two sites: give hook=IN:OUT."
            )
        if hook_out and dictionary.hook_in is not None and not dictionary.is_transcoder:
            raise UserError(f"{dictionary.name} writes where it reads: give hook=SITE; IN:OUT is for transcoders.")
        site_in = resolve_site(architecture, hook_in)
        return site_in, resolve_site(architecture, hook_out) if hook_out else site_in
    if dictionary.hook_in is None or dictionary.hook_out is None:
        raise UserError(
            f"{dictionary.name} does not say where it was trained: give hook=, as in hook=blocks.0.hook_resid_post."
        )
    hook_in = dictionary.hook_in
    if dictionary.is_transcoder and dictionary.processing.get("fold_ln") and hook_in.endswith("mlp.hook_in"):
        # With the norm's gain and bias folded away, what entered the MLP was the normalised stream itself.
        hook_in = hook_in.replace("mlp.hook_in", "ln2.hook_normalized")
    site_in = resolve_site(architecture, hook_in, dictionary.module_hook_in)
    if not dictionary.is_transcoder:
        return site_in, site_in
    return site_in, resolve_site(architecture, dictionary.hook_out, dictionary.module_hook_out)


def with_widths(architecture: Architecture, splices: Sequence[Splice]) -> Iterator[Splice]:
    """The splices, of which the dictionaries that no release describes have the widths of their sites.

    What the others expect is compared with what passes their sites when the model reads two tokens.
    """
    ports = {site.read for splice in splices for site in (splice.site_in, splice.site_out)}
    device = next(architecture.model.parameters()).device
    passed = record_activations(architecture.model, sorted(ports, key=str), torch.tensor([[0, 1]], device=device))
    for splice in splices:
        with _other_model_first(architecture, splice.dictionary):
            yield _with_width(architecture, splice, passed)


def _with_width(architecture: Architecture, splice: Splice, passed: Mapping[ModuleSide, Tensor]) -> Splice:
    dictionary, activations = splice.dictionary, []
    for verb, site, expected in (
        ("reads", splice.site_in, dictionary.d_in),
        ("writes", splice.site_out, dictionary.d_out),
    ):
        if site.read not in passed:
            raise UserError(f"Nothing passes '{site.hook}' ({site.read}) of {architecture.name} in a forward pass.")
        width, values = passed[site.read].shape[-1], passed[site.read].numel()
        if values != 2 * width:
            raise UserError(
                f"'{site.hook}' of {architecture.name} has not one vector at every position: what passes for two "
                f"tokens is {tuple(passed[site.read].shape)}. Dictionaries are spliced where one passes."
            )
        activations.append(passed[site.read])
        if expected is not None and width != expected:
            trained = f" (it was trained on {_either(dictionary)})" if dictionary.model_names else ""
            raise UserError(
                f"{dictionary.name} {verb} {expected} values a position{trained}, "
                f"and '{site.hook}' of {architecture.name} has {width}."
            )
    if dictionary.d_in is not None:
        return splice
    x, y = activations
    device = torch.device("cpu") if y.is_meta else y.device
    dictionary = replace(dictionary, hook_in=splice.site_in.hook, hook_out=splice.site_out.hook)
    return replace(splice, dictionary=placed(dictionary, x.shape[-1], y.shape[-1], device))


def is_of_other_model(architecture: Architecture, dictionary: Dictionary) -> bool:
    """Whether both models have names, and these do not mean the same model."""
    if not dictionary.model_names or architecture.name == type(architecture.model).__name__:
        return False
    return not is_among(architecture.name, dictionary.model_names)


@contextmanager
def _other_model_first(architecture: Architecture, dictionary: Dictionary) -> Iterator[None]:
    """Where a site is refused, say first that the model is not the dictionary's: that is the mistake to mend."""
    try:
        yield
    except UserError as error:
        if not is_of_other_model(architecture, dictionary):
            raise
        raise UserError(f"{_trained_elsewhere(architecture, dictionary)}. {error}") from error


def _trained_elsewhere(architecture: Architecture, dictionary: Dictionary) -> str:
    return f"{dictionary.name} was trained on {_either(dictionary)}, and the model is {architecture.name}"


def _either(dictionary: Dictionary) -> str:
    return " or ".join(dictionary.model_names)


def untrained_positions(variant: Variant) -> list[str]:
    """A sentence for each dictionary that was not trained at the first positions, on what is done there."""
    out = []
    for splice in variant.splices:
        first, spliced_from = splice.dictionary.first_position, splice.first_position
        if first:
            done = "keep their activation; splice_tokens=all splices them too"
            if spliced_from != first:
                done = f"are spliced from position {spliced_from} on, as asked"
            out.append(
                f"{splice.dictionary.name} was not trained on the first {first} positions of a text: they {done}."
            )
    return out


def with_means(variant: Variant, means: Sequence[Tensor]) -> Variant:
    """`variant` with the mean activation (d_out,) of each splice, in order."""
    return replace(variant, splices=tuple(replace(s, mean=m) for s, m in zip(variant.splices, means, strict=True)))


def _processing(dictionary: Dictionary) -> dict[str, Any] | str:
    if "processing" in dictionary.not_stated:
        return "not stated"
    return dict(dictionary.processing) or "none"


def provenance_of(variant: Variant, weights: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """What is spliced where, as plain values for a results file; `weights` are the dictionaries', where known."""
    if weights is None:
        weights = [splice.dictionary.fingerprint() for splice in variant.splices]
    return [
        {
            "dictionary": splice.dictionary.name,
            "revision": splice.dictionary.revision,
            "weights_checksum": checksum,
            "architecture": splice.dictionary.architecture,
            "d_in": splice.dictionary.d_in,
            "d_out": splice.dictionary.d_out,
            "d_dictionary": splice.dictionary.d_dictionary,
            "dtype": str(splice.dictionary.dtype).removeprefix("torch."),
            "trained_on": list(splice.dictionary.model_names),
            "context_size": splice.dictionary.context_size,
            "prepend_bos": splice.dictionary.prepend_bos,
            "processing": _processing(splice.dictionary),
            "processing_source": splice.dictionary.processing_source,
            "not stated": list(splice.dictionary.not_stated),
            "hook_in": splice.site_in.hook,
            "hook_out": splice.site_out.hook,
            "reads": str(splice.site_in.read),
            "writes": str(splice.site_out.write),
            "less": None if splice.site_out.residual is None else str(splice.site_out.residual),
            "map_in": splice.map_in.name,
            "map_out": splice.map_out.name,
            "first_position": splice.first_position,
            "mode": splice.mode,
            "stated": dict(splice.dictionary.stated),
            "neuronpedia": splice.dictionary.neuronpedia,
            "remarks": list(splice.dictionary.remarks),
        }
        for splice, checksum in zip(variant.splices, weights, strict=True)
    ]
