"""Specs with a `*` in the id: all dictionaries of a release, repository or folder that it matches, as one variant."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from sae_lm_eval import world
from sae_lm_eval.dictionaries.hub_files import layers_among, names_of_files
from sae_lm_eval.dictionaries.presence import CONFIG, FILES, ids_of
from sae_lm_eval.dictionaries.saelens_package import registry_sections
from sae_lm_eval.dictionaries.spec import CROSS_LAYER, PYTHON, SaeSpec, loaders_of_others, parse_specs
from sae_lm_eval.errors import UserError, did_you_mean


@functools.lru_cache(maxsize=256)
def specs_of(text: str) -> tuple[SaeSpec, ...]:
    """The specs of one variant, as `+` joins them and `*` stands for several; by the numbers in their ids.

    Raises `UserError` for text that is no spec, and for a pattern that matches nothing.
    """
    return tuple(
        spec
        for pattern in parse_specs(text)
        for spec in (_matched(pattern) if "*" in (pattern.id or "") else (pattern,))
    )


def _matched(spec: SaeSpec) -> tuple[SaeSpec, ...]:
    ids, pattern = _ids(spec), spec.id or ""
    matches = sorted((id_ for id_ in ids if fnmatchcase(id_, pattern)), key=_by_numbers)
    if not matches:
        some = f" It has {len(ids)}, among them {', '.join(sorted(ids, key=_by_numbers)[:4])}." if ids else ""
        near = did_you_mean(pattern, ids) or some
        raise UserError(f"'{spec}' matches no dictionary of '{spec.source}'.{near}")
    return tuple(replace(spec, id=id_) for id_ in matches)


def _by_numbers(id_: str) -> list[tuple[int, str]]:
    """So that layer 10 comes behind layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", id_)]


def _ids(spec: SaeSpec) -> Sequence[str]:
    if spec.loader in (PYTHON, CROSS_LAYER) or spec.loader in loaders_of_others():
        raise UserError(f"'{spec}': a '*' stands for dictionaries of a release or folder, and {spec.loader}: has none.")
    if spec.folder is None and spec.source == world.NAME:
        return world.dictionary_ids()
    if spec.folder is None and spec.loader == "saelens" and spec.source in registry_sections():
        return ids_of(spec.source)
    names = names_of_files(spec, spec.folder)
    if spec.loader == "circuit_tracer":
        return layers_among(names)
    wanted = FILES.get(spec.loader, CONFIG)
    return [name.removesuffix(f"/{wanted}") for name in names if name.endswith(f"/{wanted}")]
