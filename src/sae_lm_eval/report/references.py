"""The works that a report cites, read from references.bib; braces keep the capitals of names."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from urllib.parse import quote

FILE = Path(__file__).with_name("references.bib")
# An entry as the file has it: a field a line, its value in braces.
ENTRY = re.compile(r"@(\w+)\{([^,\s]+),\n(.*?)\n\}", re.DOTALL)
FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", re.MULTILINE)


@cache
def reference_entries() -> dict[str, dict[str, str]]:
    """The fields of each work by its key; `type` is what BibTeX calls the kind of entry."""
    text = FILE.read_text(encoding="utf-8")
    return {key: {"type": kind, **dict(FIELD.findall(body))} for kind, key, body in ENTRY.findall(text)}


def entry(key: str) -> str:
    """The reference for BibTeX; the plain styles print the address of a `misc` from `howpublished` alone."""
    fields = dict(reference_entries()[key])
    kind = fields.pop("type")
    if kind == "misc" and (address := link(key)):
        fields["howpublished"] = rf"\url{{{address}}}"
    return "\n".join([f"@{kind}{{{key},", *(f"  {name} = {{{value}}}," for name, value in fields.items()), "}"])


def plain_reference(key: str) -> str:
    """A reference as a line of text."""
    fields = reference_entries()[key]
    authors = [" ".join(reversed(name.split(", "))) for name in fields["author"].split(" and ")]
    who = f"{authors[0]} et al." if len(authors) > 6 else f"{', '.join(authors)}."
    where = fields.get("journal") or fields.get("booktitle") or fields.get("publisher") or ""
    volume = f" {fields['volume']}({fields['number']})" if "volume" in fields else ""
    pages = f":{fields['pages']}" if "volume" in fields else f", pages {fields['pages']}" if "pages" in fields else ""
    text = f"{who} {fields['title']}. {where}{volume}{pages}{', ' if where else ''}{fields['year']}."
    return text.replace("{", "").replace("}", "").replace(r"\_", "_").replace("--", "\N{EN DASH}")


def link(key: str) -> str | None:
    fields = reference_entries()[key]
    return f"https://doi.org/{quote(fields['doi'])}" if "doi" in fields else fields.get("url")


def citation_label(key: str) -> str | None:
    fields = reference_entries()[key]
    return f"doi:{fields['doi']}" if "doi" in fields else fields.get("url")
