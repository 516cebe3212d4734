"""The version of what the package writes, and the JSON Schemas of it. Neither torch nor lm_eval.

`schemas/` holds one each for what is added to lm_eval's results, for run.json, and for the rows of drops.csv,
fidelity.csv, equivalents.csv, scores.csv and the tables of documents. A record that has no version is of version 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lm_eval.errors import UserError

VERSION = 3
KEY = "schema"
NAMES = ("results", "run", "drops", "fidelity", "equivalents", "scores", "documents")
FOLDER = Path(__file__).parent / "schemas"
# What a record of each older version lacks, and what follows from it.
LACKS = {
    1: "the size of the vocabulary, so that a spliced CE above its logarithm is not recognised unless it is given",
}


class NewerVersion(UserError):
    """A record of a later release, which this one does not read."""


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one of `NAMES`."""
    return json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))


def version_of(record: Mapping[str, Any], where: str) -> int:
    """The version that a record was written in. Raises `UserError` for one that is newer than this package, or none."""
    version = record.get(KEY, 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"'{where}' has the schema {version!r}, which is no version: it must be 1 to {VERSION}.")
    if version > VERSION:
        raise NewerVersion(
            f"'{where}' was written by a newer sae_lm_eval (schema {version}; this one reads up to {VERSION}). "
            "Update it: pip install --upgrade sae-lm-eval."
        )
    return version


def lacking(version: int) -> str | None:
    """What a record of an older version lacks, in words; None for the present one."""
    missing = [LACKS[older] for older in sorted(LACKS) if older >= version]
    return "; ".join(missing) or None


def schema_table(name: str) -> str:
    """The fields of one of `NAMES` as a Markdown table."""
    return schema_rows(schema(name))


def schema_rows(json_schema: Mapping[str, Any]) -> str:
    """The fields of a schema as a Markdown table."""
    lines = ["| field | type | meaning |", "| --- | --- | --- |"]
    for field, definition in json_schema["properties"].items():
        lines.append(
            f"| `{field}` | {_type(definition)} | {definition.get('description', '')} |".replace("||", r"\|\|")
        )
    return "\n".join(lines)


def _type(definition: Mapping[str, Any]) -> str:
    if "const" in definition:
        return str(definition["const"])
    if "enum" in definition:
        return ", ".join(definition["enum"])
    if "$ref" in definition:
        return "object"
    kinds = definition["type"]
    return " or ".join(kinds) if isinstance(kinds, list) else kinds
