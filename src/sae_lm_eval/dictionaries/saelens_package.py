"""SAELens' package and its registry, of which no more is imported and parsed than a spec needs.

SAELens imports wandb for trainings, which takes as long as the whole rest of it. While SAELens is imported a stand-in
is in its place; whoever asks the stand-in for something gets wandb's own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sae_lm_eval.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup as Release

LATER = "wandb"
IDS = re.compile(r"""(?m)^[ -]+id:[ ]+(["']?)(.+?)\1[ ]*$""")  # of the dictionaries in a release's section


class _Later(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)  # `inspect` looks at every module for its file
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def import_saelens() -> ModuleType:
    """The package `sae_lens`."""
    if "sae_lens" in sys.modules or LATER in sys.modules or (spec := find_spec(LATER)) is None:
        return import_module("sae_lens")
    stand_in = sys.modules[LATER] = _Later(LATER)
    stand_in.__spec__ = spec  # by which accelerate asks whether wandb is installed
    try:
        return import_module("sae_lens")
    finally:
        if sys.modules.get(LATER) is stand_in:
            del sys.modules[LATER]


@cache
def registry_sections() -> dict[str, str]:
    """The text of each release in SAELens' registry; parsing the whole file takes a second, and its package several."""
    package = find_spec("sae_lens")
    if package is None or package.origin is None:
        return {}
    text = (Path(package.origin).parent / "pretrained_saes.yaml").read_text(encoding="utf-8")
    return dict(_split(text))


def _split(text: str) -> Iterator[tuple[str, str]]:
    for section in re.split(r"(?m)^(?=[^\s#-])", text):
        name, colon, _ = section.partition(":\n")
        if colon:
            yield name.strip("\"'"), section


def check_pattern(pattern: str) -> str:
    """The glob for `release#id`, in small letters, that a pattern means: one that is no glob is looked for inside.

    Raises `UserError` where nothing registered matches; SAELens is not imported for that.
    """
    glob = pattern.lower() if re.search(r"[*?\[]", pattern) else f"*{pattern.lower()}*"
    sections = registry_sections()
    ids = ((release, id_) for release, section in sections.items() for id_ in IDS.findall(section))
    if not any(fnmatchcase(f"{release}#{id_}".lower(), glob) for release, (_, id_) in ids):
        near = did_you_mean(pattern.strip("*").split("#")[0], sections)
        raise UserError(f"No dictionary that SAELens has registered matches '{pattern}'.{near}")
    return glob


def is_registered_repository(name: str) -> bool:
    """Whether a release of SAELens' registry is in that repository of the hub."""
    return any(f"repo_id: {name}\n" in section for section in registry_sections().values())


def releases() -> dict[str, Release]:
    """The releases that SAELens has registered, by name; it takes a second to parse them."""
    import_saelens()
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory()
