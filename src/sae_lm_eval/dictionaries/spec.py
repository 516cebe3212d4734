"""Spec text: `[loader:]source[#id][@revision]`, joined by `+` when one variant holds several dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sae_lm_eval.errors import UserError, one_of

LOADERS = ("saelens", "sparsify")
FORM = "[loader:]source[#id][@revision]"
FORBIDDEN = frozenset(",[](){}\"'+=")


@dataclass(frozen=True)
class SaeSpec:
    """Where a dictionary is to be had.

    `source` is a SAELens release, a hub repository `org/name` or a local folder; `id` names one
    dictionary in it; `revision` is a commit, branch or tag of the hub repository.
    """

    source: str
    id: str | None = None
    revision: str | None = None
    loader: str = "saelens"

    def __post_init__(self) -> None:
        text = str(self)
        for part, name in ((self.source, "source"), (self.id, "id"), (self.revision, "revision")):
            if part is not None and not part:
                raise UserError(f"The spec '{text}' has an empty {name}. A spec reads {FORM}.")
        bad = sorted({c for c in text if c in FORBIDDEN or c.isspace()})
        if bad == [" "] and Path(self.source).expanduser().is_dir():
            bad = []
        if bad or text.count("#") > 1 or "@" in self.source or "@" in (self.id or ""):
            signs = " ".join(repr(c) for c in bad) or "a second '#' or '@'"
            raise UserError(f"The spec '{text}' holds {signs}, which a spec cannot. A spec reads {FORM}.")
        one_of(self.loader, LOADERS, "Loader")

    @classmethod
    def parse(cls, text: str) -> SaeSpec:
        """The spec that `text` names. Raises `UserError` where `text` is none."""
        head, at, revision = text.partition("@")
        head, hash_, id_ = head.partition("#")
        loader, colon, source = head.partition(":")
        # A Windows drive or a URL is not a loader; a single letter or a slash after the colon gives them away.
        if not colon or len(loader) == 1 or (source.startswith("/") and loader not in LOADERS):
            loader, source = "saelens", head
        return cls(source, id_ if hash_ else None, revision if at else None, loader)

    def __str__(self) -> str:
        loader = "" if self.loader == "saelens" else f"{self.loader}:"
        id_ = "" if self.id is None else f"#{self.id}"
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{loader}{self.source}{id_}{revision}"


def parse_specs(text: str) -> tuple[SaeSpec, ...]:
    """The specs of one variant, as `+` joins them."""
    if text.startswith("+") or text.endswith("+"):
        raise UserError(f"'{text}' joins nothing by '+': a spec stands on both sides of it.")
    return tuple(SaeSpec.parse(part) for part in text.split("+"))
