"""Spec text: `[loader:]source[#id][@revision]`, joined by `+` when one variant holds several dictionaries.

Of the loader `python` it is `python:file.py:function?name=value&name=value`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from sae_lm_eval import world
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.files.reading import at_home, is_folder

PYTHON = "python"  # the loader that runs code of the user's own, and the one that takes arguments
CROSS_LAYER = "clt"  # the loader of whole cross-layer transcoders, each a dictionary a layer
LOADERS = ("saelens", "sparsify", "dictionary_learning", "circuit_tracer", "llama_scope", CROSS_LAYER, PYTHON)
ENTRY_POINTS = "sae_lm_eval.loaders"  # the group in which other packages name theirs
FORM = "[loader:]source[#id][@revision]"
FORBIDDEN = frozenset(",[](){}\"'+=")


@functools.cache
def loaders_of_others() -> Mapping[str, EntryPoint]:
    """The loaders that installed packages bring, by name."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS) if entry.name not in LOADERS}


@dataclass(frozen=True)
class SaeSpec:
    """Where a dictionary is to be had.

    `source` is a SAELens release, a hub repository `org/name` or a local folder; `id` names one
    dictionary in it; `revision` is a commit, branch or tag of the hub repository. Of the loader `python` the source
    is a file or module and the name of a function in it, which takes `arguments` by name.
    """

    source: str
    id: str | None = None
    revision: str | None = None
    loader: str = "saelens"
    arguments: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        text = self._without_arguments
        for part, name in ((self.source, "source"), (self.id, "id"), (self.revision, "revision")):
            if part is not None and not part:
                raise UserError(f"The spec '{text}' has an empty {name}. A spec reads {FORM}.")
        bad = sorted({c for c in text if c in FORBIDDEN or c.isspace()})
        if bad == [" "] and is_folder(at_home(self.source)):
            bad = []
        if bad or text.count("#") > 1 or "@" in self.source or "@" in (self.id or ""):
            signs = " ".join(repr(c) for c in bad) or "a second '#' or '@'"
            raise UserError(f"The spec '{text}' holds {signs}, which a spec cannot. A spec reads {FORM}.")
        one_of(self.loader, (*LOADERS, *loaders_of_others()), "Loader")
        for name, value in self.arguments:
            if self.loader != PYTHON:
                raise UserError(f"The spec '{self}' has arguments, which only {PYTHON}: takes.")
            bad = sorted({c for c in name + value if c in FORBIDDEN or c in "&?@#" or c.isspace()})
            if bad or not name.isidentifier():
                raise UserError(f"The spec '{self}' has an argument that is not of the form name=value.")

    @classmethod
    def parse(cls, text: str) -> SaeSpec:
        """The spec that `text` names. Raises `UserError` where `text` is none."""
        text, arguments = arguments_of(text) if text.startswith(f"{PYTHON}:") else (text, ())
        head, at, revision = text.partition("@")
        head, hash_, id_ = head.partition("#")
        loader, colon, source = head.partition(":")
        # A Windows drive or a URL is not a loader; a single letter or two slashes after the colon give them away.
        is_known = loader in (*LOADERS, *loaders_of_others())
        if not colon or len(loader) == 1 or (source.startswith("//") and not is_known):
            loader, source = "saelens", head
        return cls(source, id_ if hash_ else None, revision if at else None, loader, arguments)

    @property
    def folder(self) -> Path | None:
        """The local folder that the source names, None where there is none.

        One called as the embedded world is one only if it holds dictionaries: a run may have been written to it.
        """
        folder = at_home(self.source)
        is_other = self.source == world.NAME and next(folder.rglob("cfg.json"), None) is None
        return folder if is_folder(folder) and not is_other else None

    def __str__(self) -> str:
        given = "&".join(f"{name}={value}" for name, value in self.arguments)
        return f"{self._without_arguments}?{given}" if given else self._without_arguments

    @property
    def _without_arguments(self) -> str:
        loader = "" if self.loader == "saelens" else f"{self.loader}:"
        id_ = "" if self.id is None else f"#{self.id}"
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{loader}{self.source}{id_}{revision}"


def arguments_of(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A spec without what stands behind its `?`, and that by name. Raises `UserError` for another form."""
    head, mark, given = text.partition("?")
    pairs = [part.partition("=") for part in given.split("&")] if mark else []
    if not all(name and equals for name, equals, _ in pairs):
        raise UserError(f"The arguments '?{given}' of '{head}' are not of the form ?name=value&name=value.")
    return head, tuple((name, value) for name, _, value in pairs)


def parse_specs(text: str) -> tuple[SaeSpec, ...]:
    """The specs of one variant, as `+` joins them."""
    if text.startswith("+") or text.endswith("+"):
        raise UserError(f"'{text}' joins nothing by '+': a spec stands on both sides of it.")
    return tuple(SaeSpec.parse(part) for part in text.split("+"))
