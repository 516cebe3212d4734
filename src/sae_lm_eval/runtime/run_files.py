"""What a run writes down of itself in its folder, each read again through a schema."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign, is_file, read_json

SETTINGS, GROUPS, PACE, IDENTITY = "run.json", ".groups.json", ".pace.json", ".identity.json"
MODELS = "models.json"  # in a folder of several models, of which each has its run in a folder of its own
Kind = TypeVar("Kind")


class Groups(Foreign):
    """Whether prompts get a BOS token, and the variants of each forked pass."""

    bos: StrictBool
    groups: list[list[StrictStr]]


class Pace(Foreign):
    """Tokens of a pass, and tokens times forward passes a second."""

    tokens: Annotated[StrictInt, Field(ge=0, lt=2**63)]
    token_passes_per_second: Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]


class Identity(Foreign):
    """What results were made of: content of the model and of each variant, versions of packages."""

    model: dict[str, StrictStr | None]
    packages: dict[str, StrictStr]
    variants: dict[str, dict[str, StrictStr]]


class Models(Foreign):
    """The models of a folder by the names of their folders, each with its arguments."""

    models: dict[Annotated[StrictStr, Field(pattern=r"^[^/\\.][^/\\]*$", max_length=255)], dict[str, Any]]


def is_of_several_models(folder: Path) -> bool:
    """Whether a folder is that of several models, each with a run in a folder of its own."""
    return is_file(folder / MODELS)


def read_models(folder: Path) -> dict[str, dict[str, Any]]:
    """The models that have runs in the folder, none where it is no folder of several models."""
    held = read_record(folder / MODELS, Models)
    return {} if held is None else dict(held.models)


def read_groups(folder: Path) -> Groups | None:
    """The groups that a run in the folder settled on, None where it has not."""
    return read_record(folder / GROUPS, Groups)


def read_pace(folder: Path) -> Pace | None:
    """What a run in the folder measured, None where it has not."""
    return read_record(folder / PACE, Pace)


def read_identity(folder: Path) -> Identity | None:
    """What the results in the folder were made of, None where that is not written down."""
    return read_record(folder / IDENTITY, Identity)


def read_record(file: Path, kind: type[Kind]) -> Kind | None:
    """What a file of a run's holds, None where there is none. Raises `UserError` where it cannot be read."""
    try:
        return read_json(file, kind, "a record of a run") if os.path.exists(file) else None
    except UserError as error:
        raise UserError(f"{error} Give another --output_path.") from error
