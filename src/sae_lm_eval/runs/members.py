"""The models or checkpoints of a curve, and what is asked of them: told before torch is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictStr

from sae_lm_eval import world
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign, is_file, read_json, shown
from sae_lm_eval.harness.context_length import check_length
from sae_lm_eval.runs.model_files import model_config
from sae_lm_eval.runtime.run_files import SETTINGS
from sae_lm_eval.runtime.run_folder import check_folder
from sae_lm_eval.scaling.data_files import Amount, Name
from sae_lm_eval.scaling.loss_curves import MAIN
from sae_lm_eval.scaling.original_model import find_preset

DOCUMENT_TYPES = ("loglikelihood_rolling", "sae_fidelity")  # lm_eval's output_type of tasks that ask whole documents
TOKENS_A_STEP = 2_097_152  # of Pythia's batches: Biderman et al. 2023, arXiv:2304.01373


class MemberRow(Foreign):
    """A model of a CSV of the user's."""

    model: Name
    tokens: Amount | None = None


def _revision(given: Any) -> Any:
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given  # a commit of digits alone


class AskedModel(Foreign):
    """The model of a run, in its record."""

    pretrained: Annotated[StrictStr, Field(min_length=1)]
    revision: Annotated[StrictStr | None, BeforeValidator(_revision)] = None


class AskedRun(Foreign):
    """The record of a run, as far as members of a family are asked by it."""

    model_args: AskedModel


def read_asked(like: Path) -> dict[str, Any]:
    """What the run in a folder was asked. Raises `UserError` where it is no folder of `run`."""
    file = like / SETTINGS
    if not is_file(file):
        raise UserError(f"'{shown(like, 200)}' is no folder that `sae-lm-eval run` wrote, so its tasks are not known.")
    return read_json(file, AskedRun, "the record of a run").as_given()


@dataclass(frozen=True)
class Member:
    """A model to be measured: a hub repository or a local folder, a revision, and the tokens it was trained on."""

    model: str
    revision: str = MAIN
    tokens: float | None = None

    @classmethod
    def parse(cls, text: str, tokens: float | None = None) -> Member:
        """From `name` or `name@revision`."""
        model, _, revision = text.strip().partition("@")
        if not model or (not revision and "@" in text):
            raise UserError(
                f"'{text}' names no model: write name or name@revision, as in EleutherAI/pythia-70m@step1000."
            )
        return cls(model, revision or MAIN, tokens)

    def __str__(self) -> str:
        return self.model if self.revision == MAIN else f"{self.model}@{self.revision}"

    @property
    def source(self) -> dict[str, str]:
        """What the adapter is told to load; checkpoints of the embedded world lie in folders of their own."""
        if world.is_meant_by(self.model) and self.revision != MAIN:
            return {"pretrained": str(world.model_path(self.revision))}
        return {"pretrained": self.model, "revision": self.revision}

    @cached_property
    def training(self) -> tuple[float, str]:
        """Training tokens and where the number comes from. Raises `UserError` where nobody says."""
        if self.tokens is not None:
            return self.tokens, "given by the user"
        if world.is_meant_by(self.model):
            facts = world.world_facts()
            runs = {row["name"]: row["tokens"] for row in (*facts["family"], *facts["checkpoints"])}
            return float(runs[self.revision]), "measured when the world was made"
        preset = find_preset(self.model)
        step = re.fullmatch(r"step(\d+)", self.revision)
        if preset is not None and preset.name.startswith("pythia-") and step:
            return float(int(step[1]) * TOKENS_A_STEP), f"{step[1]} steps of {TOKENS_A_STEP:,} tokens"
        if preset is not None and preset.tokens is not None and self.revision == MAIN:
            return preset.tokens, preset.tokens_source
        raise UserError(f"The training tokens of {self} are not known: give them, as in --tokens {self}=3e11.")


def check_members(members: Sequence[Member], loading: Mapping[str, Any], context: int | None = None) -> None:
    """Raise `UserError` for a model that is not there, reads less than `context`, or has no known training tokens."""
    for member in members:
        source, _ = member.source, member.training
        config = model_config({**loading, **source})
        check_length({"max_length": context, **loading, **source}, config)


def check_curve_file(path: Path) -> None:
    """Raise `UserError` where no curve can be written to `path`."""
    if path.suffix != ".csv":
        raise UserError(f"The file '{path}' must end in .csv, as in --output_path family.csv.")
    check_folder(path.parent)
