"""Whether a spec names a dictionary that exists, told from names and small files, without torch or SAELens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae_lm_eval import world
from sae_lm_eval.dictionaries import python_loader
from sae_lm_eval.dictionaries.config_file import read_configuration, with_metadata
from sae_lm_eval.dictionaries.cross_layer_files import names_of_cross_layer
from sae_lm_eval.dictionaries.hub_files import (
    LAYER_FILE,
    LAYER_SUFFIX,
    hub_told,
    layer_files,
    layers_among,
    none_at,
    refuse_other_format,
    weights_folder,
)
from sae_lm_eval.dictionaries.saelens_package import is_registered_repository, registry_sections
from sae_lm_eval.dictionaries.spec import CROSS_LAYER, PYTHON, SaeSpec, loaders_of_others
from sae_lm_eval.dictionaries.world_loader import world_dictionary
from sae_lm_eval.errors import UserError, did_you_mean

CONFIG = "cfg.json"
FILES = {
    "dictionary_learning": "ae.pt",
    "llama_scope": "hyperparams.json",
}  # by which a loader knows a folder, where it is another


def check_presence(spec: SaeSpec) -> None:
    """Raise `UserError`, with the nearest names, where `spec` names no dictionary of a folder, a release or the hub.

    What only its files can tell is told when they are loaded.
    """
    if spec.loader == PYTHON:
        python_loader.check_python_source(spec)
    elif spec.loader in loaders_of_others():
        return  # what it reads is its own affair
    elif spec.loader == CROSS_LAYER:
        names_of_cross_layer(spec)
    elif spec.folder is not None and spec.loader == "circuit_tracer":
        layer_files(spec, CONFIG)
    elif spec.folder is not None:
        weights_folder(spec, FILES.get(spec.loader, CONFIG))
    elif spec.source == world.NAME:
        world_dictionary(spec)
    elif spec.loader == "saelens" and spec.source in registry_sections():
        check_id(spec, ids_of(spec.source))
    elif spec.source.count("/") == 1 and spec.source[0] not in "./~":
        _check_repository(spec)
    else:
        refuse_unknown(spec, registry_sections())


def refuse_unknown(spec: SaeSpec, releases: Any) -> None:
    """Raise `UserError` for a source that is no folder, no release and cannot be a repository."""
    if "/" in spec.source:
        weights_folder(spec, CONFIG)  # which says what is wrong with it
    raise UserError(
        f"There is no SAELens release '{spec.source}'.{did_you_mean(spec.source, [*releases, world.NAME])} "
        f"'sae-lm-eval inspect --list PATTERN' searches them."
    )


def check_id(spec: SaeSpec, ids: Any) -> None:
    """Raise `UserError` where the release of `spec`, with these `ids`, has no such dictionary."""
    if spec.id in ids:
        return
    what = f"no dictionary '{spec.id}'" if spec.id else f"{len(ids)} dictionaries: name one with #id"
    some = ", ".join(list(ids)[:4])
    raise UserError(f"The release '{spec.source}' has {what}.{did_you_mean(spec.id or '', ids)} It begins with {some}.")


def training_site(spec: SaeSpec) -> tuple[str | None, int | None]:
    """The model and the block that a dictionary was trained at, as its configuration, its release or its id says it.

    None for what none of them says.
    """
    if spec.loader not in ("saelens", "sparsify"):
        return None, None
    folder = spec.folder or (world.FILES / "dictionaries" if spec.source == world.NAME else Path(spec.source))
    config = _configuration(folder / (spec.id or "") / CONFIG)
    hook = config.get("hook_name") or config.get("hook_point") or spec.id
    match = re.search(r"(?:^|[._/])(?:blocks|layers?)[._](\d+)(?![\dkm])", str(hook))
    registered = re.search(r"(?m)^  model: (.+)$", registry_sections().get(spec.source, ""))
    model = config.get("model_name") or (registered[1] if registered else None)
    return None if model is None else str(model), int(match[1]) if match else None


def _configuration(file: Path) -> dict[str, Any]:
    try:
        return with_metadata(read_configuration(file))
    except UserError:
        return {}  # which is told when it is loaded


def ids_of(release: str) -> list[str]:
    """The ids of a release that SAELens has registered, in its order."""
    import yaml

    section = yaml.load(registry_sections()[release], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [str(entry["id"]) for entry in section[release]["saes"]]


def _check_repository(spec: SaeSpec) -> None:
    """Of a hub repository, by the names of its files; what is in the cache is not asked for."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    by_layer = spec.loader == "circuit_tracer"
    file_name = LAYER_FILE if by_layer else FILES.get(spec.loader, CONFIG)
    file = f"{spec.id}{LAYER_SUFFIX}" if by_layer else f"{spec.id}/{file_name}" if spec.id else file_name
    needs_id = by_layer and spec.id is None  # there is no file to look for
    if not needs_id and isinstance(try_to_load_from_cache(spec.source, file, revision=spec.revision), str):
        return
    if constants.HF_HUB_OFFLINE or is_registered_repository(spec.source):
        return  # loading tells what is not in the cache, and knows what a registered repository holds
    with hub_told(spec):
        names = HfApi().list_repo_files(spec.source, revision=spec.revision)
    is_there = not needs_id and file in names
    if not is_there:  # before loading, which downloads what it looks at
        prefix = f"{spec.id}/" if spec.id else ""
        refuse_other_format(spec, (name.removeprefix(prefix) for name in names if name.startswith(prefix)))
    folders = [name.removesuffix(file_name).rstrip("/") for name in names if name.endswith(f"/{file_name}")]
    if not is_there and (choices := layers_among(names) if by_layer else folders):
        raise UserError(none_at(spec, file_name, choices))
