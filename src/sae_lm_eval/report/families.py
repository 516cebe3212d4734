"""Reconstructions by one dictionary each that belong together: by L0 at a layer and width, and from layer to layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sae_lm_eval.report.sweep_settings import BLOCK, IDENTITY, Setting, singles

LEAST_LAYERS = 3  # that make a curve over layers
# What releases call dictionaries of one kind by that differ in their L0.
L0_IN_AN_ID = re.compile(
    r"(?<![a-z0-9])(?:average_l0_\d+|l0_(?:small|medium|big)|trainer_\d+|(?:top)?k_?\d+)(?![a-z0-9])"
)
ALIKE_BUT_IN_L0 = ("revision", "architecture", "map_in", "map_out")


def by_l0(chosen: Iterable[Setting]) -> list[list[Setting]]:
    """Those that differ in their L0 alone, in its order, where there are several L0s.

    Release, site and width are the same, and so are the revision, the architecture, the activation map and the
    dictionary's own name, but for what it says of the L0.
    """
    candidates = [setting for setting in singles(chosen) if setting.value("l0") is not None]
    families = _grouped(candidates, lambda setting: (_kind(setting), setting.layer, _but_for_l0(setting)))
    several = (family for family in families if len({setting.value("l0") for setting in family}) > 1)
    return [sorted(family, key=lambda setting: setting.value("l0") or 0.0) for family in several]


def by_layer(chosen: Iterable[Setting]) -> list[list[Setting]]:
    """Those of one release, kind of site and width at several layers, in their order; none where no family has three.

    Families with one variant at each layer come first.
    """
    numbered = [setting for setting in singles(chosen) if setting.layer.isdecimal()]
    families = [family for family in _grouped(numbered, _kind) if len({setting.layer for setting in family}) > 1]
    if max((len({setting.layer for setting in family}) for family in families), default=0) < LEAST_LAYERS:
        return []
    return sorted((sorted(family, key=lambda setting: int(setting.layer)) for family in families), key=_crowded)


def joined_count(families: Sequence[Sequence[Setting]]) -> int:
    """How many of the families of `by_layer` have one variant at each layer."""
    return sum(not _crowded(family) for family in families)


def names_by_layer(families: Sequence[Sequence[Setting]]) -> dict[int, str]:
    """What tells the families of `by_layer` apart: release, site and width, as far as they differ in them."""
    parts = [(_release(family[0]), _site(family[0]), f"width {family[0].width}") for family in families]
    places = [at for at in range(3) if len({part[at] for part in parts}) > 1] or [2]
    return {number: ", ".join(part[at] for at in places) for number, part in enumerate(parts)}


def _grouped(chosen: Iterable[Setting], key: Callable[[Setting], Any]) -> list[list[Setting]]:
    families: dict[Any, list[Setting]] = {}
    for setting in chosen:
        families.setdefault(key(setting), []).append(setting)
    return list(families.values())


def _crowded(family: Sequence[Setting]) -> bool:
    return len({setting.layer for setting in family}) < len(family)


def _kind(setting: Setting) -> tuple[Any, ...]:
    return _release(setting), _site(setting), setting.width, setting.same[1:]


def _but_for_l0(setting: Setting) -> tuple[str, ...]:
    splice = _splice(setting)
    name = setting.dictionary.removeprefix(_release(setting))
    return L0_IN_AN_ID.sub("", name), *(splice[key] for key in ALIKE_BUT_IN_L0)


def _splice(setting: Setting) -> dict[str, str]:
    return dict(zip(IDENTITY, setting.same[0][0], strict=True))


def _site(setting: Setting) -> str:
    """The hooks without their layer."""
    read, written = (BLOCK.sub("", _splice(setting)[end]) for end in ("hook_in", "hook_out"))
    return written if read == written else f"{read} to {written}"


def _release(setting: Setting) -> str:
    """What stands before the dictionary's own name: a release, a repository or a folder."""
    release, mark, _ = setting.dictionary.partition("#")
    return release if mark else setting.dictionary.rpartition("/")[0]
