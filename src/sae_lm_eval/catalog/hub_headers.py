"""What the hub says of a dictionary before it is loaded: its configuration and the header of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lm_eval import world
from sae_lm_eval.catalog import lookup
from sae_lm_eval.catalog.lookup import DictionaryFacts
from sae_lm_eval.dictionaries.cross_layer_files import GEMMA_SCOPE_2, local_folder, names_of_cross_layer
from sae_lm_eval.dictionaries.hub_files import hub_told, quietly
from sae_lm_eval.dictionaries.presence import CONFIG
from sae_lm_eval.dictionaries.saelens_package import import_saelens, is_registered_repository, registry_sections
from sae_lm_eval.dictionaries.saelens_reads import shapes_in
from sae_lm_eval.dictionaries.spec import CROSS_LAYER, SaeSpec
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import json_value

WEIGHTS = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}


def headers_of(spec: str) -> list[DictionaryFacts]:
    """What is known of the dictionaries that a spec names before they are loaded: one, or one a layer.

    Raises `UserError` as `with_headers` does.
    """
    parsed = SaeSpec.parse(spec)
    return [with_headers(lookup.facts_of(spec))] if parsed.loader != CROSS_LAYER else _of_cross_layer(parsed)


def _of_cross_layer(spec: SaeSpec) -> list[DictionaryFacts]:
    """Each layer with the shapes of its own tensors; the first that is asked for with those of all before it."""
    from sae_lm_eval.dictionaries.cross_layer_loader import site_pair

    names = names_of_cross_layer(spec)
    layout, config, layers, requested, id_ = names
    folder, prefix = local_folder(spec), f"{id_}/" if id_ else ""
    layer_facts = []
    for number, layer in enumerate(layers[: names.last + 1]):
        shapes: dict[str, tuple[int, ...]] = {}
        for kind in dict.fromkeys((layout.encoder, layout.decoder)):
            shapes |= _told_shapes(spec, folder, f"{prefix}{kind.format(number)}")
        if layout is GEMMA_SCOPE_2 and len(rows := shapes.get("w_dec", ())) == 3:
            shapes["w_dec"] = (rows[0], rows[1] - number, rows[2])  # what it has for earlier layers is not loaded
        hook_in, hook_out, module_in, module_out = site_pair(layout, config, layer)
        sites = {"hook_in": hook_in, "hook_out": hook_out, "module_in": module_in, "module_out": module_out}
        latents = next((shape[0] for name, shape in shapes.items() if name.startswith("b_enc")), None)
        name = replace(spec, id="/".join(filter(None, (id_, f"layer_{layer}"))))
        layer_facts.append(DictionaryFacts(str(name), **sites, width=latents, shapes=shapes))
    if requested is None:
        return layer_facts
    # Of the layers before, which write there too, nothing but their size matters.
    first, *others = layer_facts[requested[0] :]
    before = [*layer_facts[: requested[0]], first]
    shapes = {f"{facts.spec} {name}": shape for facts in before for name, shape in (facts.shapes or {}).items()}
    return [replace(first, shapes=shapes), *others]


def _told_shapes(spec: SaeSpec, folder: Path | None, name: str) -> dict[str, tuple[int, ...]]:
    """Raises `UserError` where the file is damaged or the hub refuses it."""
    from huggingface_hub.errors import SafetensorsParsingError
    from safetensors import SafetensorError

    try:
        with hub_told(spec) if folder is None else nullcontext():
            return _shapes(spec, folder, name)
    except (SafetensorError, SafetensorsParsingError) as error:
        raise UserError(f"'{name}' of '{spec}' is truncated or corrupt: download it again.") from error


def _shapes(spec: SaeSpec, folder: Path | None, name: str) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a file, by its header. Raises what the libraries raise."""
    from huggingface_hub import parse_safetensors_file_metadata

    if folder is not None:
        return {tensor: tuple(shape) for tensor, shape in shapes_in(folder / name).items()}
    metadata = parse_safetensors_file_metadata(spec.source, name, revision=spec.revision)
    return {tensor: tuple(info.shape) for tensor, info in metadata.tensors.items()}


def with_headers(facts: DictionaryFacts) -> DictionaryFacts:
    """`facts`, and what the hub's files of it say besides: a few kilobytes, no weights.

    A registered release whose converter needs whole files stays as it is. Raises `UserError` where the hub refuses the
    files, or cannot be reached.
    """
    spec = SaeSpec.parse(facts.spec)
    is_complete = facts.hook_out is not None and (facts.width is not None or facts.shapes is not None)
    if is_complete or spec.loader not in WEIGHTS or spec.source == world.NAME:
        return facts
    if spec.source in registry_sections():
        config = _by_saelens(spec)
        return facts if config is None else _completed(facts, config, None)
    if spec.folder is None and is_registered_repository(spec.source):
        return facts  # which of its releases is meant is settled when it is loaded
    config, shapes = _of_files(spec)
    return _completed(facts, config, shapes, hookpoint=spec.id if spec.loader == "sparsify" else None)


def _by_saelens(spec: SaeSpec) -> Mapping[str, Any] | None:
    """What SAELens' converter makes of the release's configuration; None where it fails."""
    import_saelens()
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

    try:
        with hub_told(spec):
            return quietly(lambda: load_sae_config_from_huggingface(spec.source, spec.id or ""))[0]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        return None  # loading tells what is wrong with it


def _of_files(spec: SaeSpec) -> tuple[Mapping[str, Any], Mapping[str, tuple[int, ...]] | None]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, SafetensorsParsingError

    prefix = f"{spec.id}/" if spec.id else ""
    weights = f"{prefix}{WEIGHTS[spec.loader]}"
    if spec.folder is not None:
        return _read(spec.folder / f"{prefix}{CONFIG}"), _shapes(spec, spec.folder, weights)
    with hub_told(spec):
        try:
            config = _read(Path(hf_hub_download(spec.source, f"{prefix}{CONFIG}", revision=spec.revision)))
            return config, _shapes(spec, None, weights)
        except (EntryNotFoundError, SafetensorsParsingError):
            return {}, None  # loading tells which file is missing, or what is wrong with it


def _read(file: Path) -> Mapping[str, Any]:
    config = json_value(file.read_text(encoding="utf-8"), f"'{file}'")
    return config if isinstance(config, dict) else {}


def _completed(
    facts: DictionaryFacts,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]] | None,
    hookpoint: str | None = None,
) -> DictionaryFacts:
    settings = {**config, **(config.get("metadata") or {})}
    hook_in = facts.hook_in or settings.get("hook_name") or settings.get("hook_point")
    hook_out = facts.hook_out or settings.get("hook_name_out") or hook_in
    if hookpoint is not None:
        hook_in = hook_out = hookpoint.rsplit("/", 1)[-1]
        if settings.get("transcode"):
            hook_in, hook_out = f"{hook_in}.input", f"{hook_out}.output"
    width, d_in = settings.get("d_sae"), settings.get("d_in")
    if shapes is None and isinstance(width, int) and isinstance(d_in, int):
        d_out = settings.get("d_out") or d_in
        shapes = {"W_enc": (d_in, width), "b_enc": (width,), "W_dec": (width, d_out), "b_dec": (d_out,)}
    return replace(
        facts,
        hook_in=hook_in,
        hook_out=hook_out,
        module_in=facts.module_in or settings.get("hf_hook_name"),
        module_out=facts.module_out or settings.get("hf_hook_name_out"),
        width=facts.width or width,
        shapes=facts.shapes or shapes,
    )
