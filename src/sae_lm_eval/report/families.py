"""Reconstructions by one dictionary each that belong together: by L0 at a layer and width, and from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sae_lm_eval.report.sweep_tables import BLOCK, IDENTITY, Setting, singles

LEAST_LAYERS = 3  # that make a curve over layers


def by_l0(chosen: Iterable[Setting]) -> list[list[Setting]]:
    """Those of one release, site and width that differ in their L0, in its order, where there are several."""
    known = [of for of in singles(chosen) if of.value("l0") is not None]
    families = _grouped(known, lambda of: (_kind(of), of.layer))
    return [sorted(family, key=lambda of: of.value("l0") or 0.0) for family in families if len(family) > 1]


def by_layer(chosen: Iterable[Setting]) -> list[list[Setting]]:
    """Those of one release, kind of site and width at several layers, in their order; none where no family has three.

    Families with one variant at each layer come first.
    """
    numbered = [of for of in singles(chosen) if of.layer.isdecimal()]
    families = [family for family in _grouped(numbered, _kind) if len({of.layer for of in family}) > 1]
    if max((len({of.layer for of in family}) for family in families), default=0) < LEAST_LAYERS:
        return []
    return sorted((sorted(family, key=lambda of: int(of.layer)) for family in families), key=_crowded)


def joined(families: Sequence[Sequence[Setting]]) -> int:
    """How many of the families of `by_layer` have one variant at each layer."""
    return sum(not _crowded(family) for family in families)


def names_by_layer(families: Sequence[Sequence[Setting]]) -> dict[int, str]:
    """What tells the families of `by_layer` apart: release, site and width, as far as they differ in them."""
    parts = [(_release(family[0]), _site(family[0]), f"width {family[0].width}") for family in families]
    kept = [at for at in range(3) if len({part[at] for part in parts}) > 1] or [2]
    return {number: ", ".join(part[at] for at in kept) for number, part in enumerate(parts)}


def _grouped(chosen: Iterable[Setting], key: Callable[[Setting], Any]) -> list[list[Setting]]:
    families: dict[Any, list[Setting]] = {}
    for of in chosen:
        families.setdefault(key(of), []).append(of)
    return list(families.values())


def _crowded(family: Sequence[Setting]) -> bool:
    return len({of.layer for of in family}) < len(family)


def _kind(of: Setting) -> tuple[Any, ...]:
    return _release(of), _site(of), of.width, of.same[1:]


def _splice(of: Setting) -> dict[str, str]:
    return dict(zip(IDENTITY, of.same[0][0], strict=True))


def _site(of: Setting) -> str:
    """The hooks without their layer."""
    read, written = (BLOCK.sub("", _splice(of)[end]) for end in ("hook_in", "hook_out"))
    return written if read == written else f"{read} to {written}"


def _release(of: Setting) -> str:
    """What stands before the dictionary's own name: a release, a repository or a folder."""
    release, found, _ = of.dictionary.partition("#")
    return release if found else of.dictionary.rpartition("/")[0]
