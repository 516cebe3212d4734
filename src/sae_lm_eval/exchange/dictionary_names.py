"""What other projects call a dictionary, so that two records of one can be told to be of the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A loader's name before a colon; a Windows drive and a URL have none.
LOADER = re.compile(r"\A[A-Za-z_]\w+:(?!//)")


@dataclass(frozen=True)
class DictionaryName:
    """`release` is SAELens' name of a release, a hub repository or a folder; `id` names one dictionary in it.

    `revision` is None where the record says none.
    """

    release: str
    id: str | None = None
    revision: str | None = None

    @classmethod
    def of_spec(cls, spec: str) -> DictionaryName:
        """The name in `[loader:]source[#id][@revision]`, whichever loader reads it."""
        head, _, revision = spec.strip().partition("@")
        source, _, id_ = head.partition("#")
        return cls.of_parts(LOADER.sub("", source, count=1), id_, revision)

    @classmethod
    def of_parts(cls, release: str, id_: str | None, revision: str | None = None) -> DictionaryName:
        """The name from its parts, of which empty ones are none."""
        return cls(release.strip().rstrip("/"), (id_ or "").strip() or None, (revision or "").strip() or None)

    @property
    def key(self) -> tuple[str, str | None]:
        """Release and id, by which records are joined."""
        return self.release, self.id

    def fits(self, other: DictionaryName) -> bool:
        """Whether both name one dictionary: a revision tells them apart where both records have one."""
        return self.key == other.key and (None in (self.revision, other.revision) or self.revision == other.revision)

    def __str__(self) -> str:
        id_ = "" if self.id is None else f"#{self.id}"
        return f"{self.release}{id_}{'' if self.revision is None else f'@{self.revision}'}"
