"""The records that `where` wrote beside a run: those that explain a variant of it, and why others are left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.comparison.restored import MISSED
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign, read_json
from sae_lm_eval.report.formatting import distinct_slugs
from sae_lm_eval.results.results import Results
from sae_lm_eval.runtime.run_files import read_identity

FOLDER = "where"  # in that of a run
OF_MODEL = ("pretrained", "revision", "subfolder", "peft", "delta")
USUAL = {"revision": "main"}
OF_SPLICE = ("dictionary", "revision", "hook_in", "hook_out", "mode")
OF_VARIANT = ("scale", "splice_tokens", "splice_input")
Number = Annotated[float, Field(allow_inf_nan=False)] | None
CHECKSUM = "weights_checksum"  # of a splice; results of earlier versions have none
OF_MODEL_CONTENT = {"weights": "other weights", "tokenizer": "another tokenizer"}


class WhereRow(Foreign):
    """What one measure lost in a part of the tasks, and the shares of it that are those of a class."""

    section: str
    name: str
    measure: str
    unit: Literal["pp", "nats", "nats/token"]
    n: int
    division: str
    class_: str = Field(alias="class")
    reason: str | None
    drop: Number
    drop_low: Number
    drop_high: Number
    restored: Number
    restored_low: Number
    restored_high: Number
    alone: Number
    alone_low: Number
    alone_high: Number
    random: Number
    random_low: Number
    random_high: Number


class Coverage(Foreign):
    """How many documents have a class, and how many positions of it in one of them."""

    division: str
    class_: str = Field(alias="class")
    documents: int
    positions: Number


class ActivatedToken(Foreign):
    """A token at which a latent is active, between what stands before and behind it."""

    before: str
    token: str
    after: str
    activation: Annotated[float, Field(allow_inf_nan=False)]


class WhereLatent(Foreign):
    """What a latent is worth to the margins of a part of the tasks (nats)."""

    name: str
    hook: str
    latent: Annotated[int, Field(ge=0)]
    attributed: Number
    ablated: Number
    ablated_low: Number
    ablated_high: Number
    active: int
    neuronpedia: str | None = None
    tokens: list[ActivatedToken]


class LatentsPart(Foreign):
    """What a part of the tasks lost of its margins (nats), and what the error is worth to first order."""

    name: str
    lost: Number
    error: Number


class WhereLatents(Foreign):
    """The latents that margins depend on, or the reason why there are none."""

    reason: str | None
    documents: int
    parts: list[LatentsPart]
    rows: list[WhereLatent]


class QuestionToken(Foreign):
    """A token with what its error is worth (nats), None where nothing is spliced in."""

    text: str
    part: Literal["prompt", "right", "wrong"]
    value: Number


class WhereQuestion(Foreign):
    """A question token by token, or the reason why it is not."""

    task: str
    doc_id: int
    reason: str | None = None
    method: Literal["exact", "gradient"] = "exact"
    margin_baseline: Number = None
    margin_variant: Number = None
    tokens: list[QuestionToken] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_margins_or_a_reason(self) -> WhereQuestion:
        if self.reason is None and None in (self.margin_baseline, self.margin_variant):
            raise ValueError("a question without a reason needs both margins")
        return self


class WhereProvenance(Foreign):
    """Of a variant, what tells it from others."""

    splices: list[dict[str, Any]] = Field(default_factory=list)


class WhereRecord(Foreign):
    """A file that `where` wrote, as far as a report reads it."""

    variant: str
    level: Annotated[float, Field(gt=0, lt=1)]
    documents: Annotated[int, Field(gt=0)]
    held_out: bool
    aligned: Annotated[float, Field(ge=0, le=1)]
    rows: list[WhereRow]
    coverage: list[Coverage]
    fitted_on: int | None = None
    energy: dict[str, Number] | None = None
    norm_edges: dict[str, list[Annotated[float, Field(allow_inf_nan=False)]]] | None = None
    provenance: WhereProvenance = Field(default_factory=WhereProvenance)
    model_args: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, str | None] = Field(default_factory=dict)
    tasks: list[str] = Field(default_factory=list)
    n_shot: dict[str, int] = Field(default_factory=dict)
    chat_template: bool = False
    system_instruction: str | None = None
    latents: WhereLatents | None = None
    questions: list[WhereQuestion] = Field(default_factory=list)
    not_told: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _is_fitted_where_it_says_how_well(self) -> WhereRecord:
        if any(is_fitted(name) for name in self.energy or {}) and self.fitted_on is None:
            raise ValueError("the energy of directions needs fitted_on, on how many positions they were fitted")
        return self


def is_fitted(name: str) -> bool:
    """Whether what `energy` calls `name` is fitted to other documents."""
    return name.partition(":")[0] != MISSED


def read_where_record(file: Path) -> WhereRecord:
    """Raises `UserError` for a file that is none."""
    return read_json(file, WhereRecord, "a record of `sae-lm-eval where`")


def records_beside(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of the comparison's variants, under their names, and a sentence for each other one that lies there.

    Each has as `slug` what files are called by. Of several records of a variant, the newest file counts.
    Raises `UserError` for a file that is none.
    """
    home = comparison.baseline.folder
    folders = [folder / FOLDER for folder in (home, *home.parents[:2])]
    matches: list[tuple[Path, WhereRecord, str]] = []
    left_out = []
    for file in (file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))):
        record = read_where_record(file)
        spliced = record.provenance.as_given()
        own = [results.name for results in comparison.variants if _is_same(results.provenance, spliced)]
        mismatch = _mismatch(record, comparison.baseline) or (None if own else "a variant that is not compared here")
        if mismatch is None:
            matches.append((file, record, own[0]))
        else:
            left_out.append(_left_out(file, mismatch))
    newest = {name: file for file, _, name in sorted(matches, key=lambda match: match[0].stat().st_mtime_ns)}
    slugs = distinct_slugs(name for *_, name in matches)
    left_out += [
        _left_out(file, f"{name}, as is {_short(newest[name])}, which is newer")
        for file, _, name in matches
        if file != newest[name]
    ]
    return [
        {**record.model_dump(by_alias=True), "variant": name, "slug": slugs[name]}
        for file, record, name in matches
        if file == newest[name]
    ], left_out


def _left_out(file: Path, what: str) -> str:
    return f"{_short(file)} is left out: it is of {what}."


def _short(file: Path) -> str:
    return "/".join(file.parts[-2:])


def _mismatch(record: WhereRecord, baseline: Results) -> str | None:
    """Of which other model, tasks or prompts a record is; None for those of the comparison's baseline."""
    if not record.model_args or not record.n_shot:
        lacking = "the model" if not record.model_args else "the shots"
        return f"an earlier version, which did not write down {lacking}"
    own_args = baseline.model_args
    for name in OF_MODEL:
        ours, theirs = (str(args.get(name) or USUAL.get(name) or "none") for args in (own_args, record.model_args))
        if ours != theirs:
            return f"another model ({name} {theirs}, and here {ours})"
    content = _model_content(baseline.folder)
    for name, other in OF_MODEL_CONTENT.items():
        if record.model.get(name) and content.get(name) and record.model[name] != content[name]:
            return f"a model with {other}"
    lacking = [task for task in record.tasks if task not in baseline.tasks]
    return f"other tasks ({', '.join(lacking[:3])})" if lacking else _other_prompts(record, baseline)


def _other_prompts(record: WhereRecord, baseline: Results) -> str | None:
    """With which other prompts the tasks of a record were asked; None for those of the baseline."""
    for task, theirs in record.n_shot.items():
        ours = baseline.n_shot.get(task, 0)
        if ours != theirs:
            return f"another number of shots ({task} has {theirs}, and here {ours})"
    if record.chat_template != bool(baseline.raw.get("chat_template")):
        return f"prompts with{'' if record.chat_template else 'out'} a chat template"
    if (record.system_instruction or None) != (baseline.raw.get("system_instruction") or None):
        return "another system instruction"
    return None


def _model_content(folder: Path) -> Mapping[str, str | None]:
    """What the run that made the results wrote down of its model; nothing where no run did, or it cannot be read."""
    identities = (read_identity(above) for above in (folder, *folder.parents[:2]))
    try:
        return next((identity.model for identity in identities if identity is not None), {})
    except UserError:
        return {}


def _is_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two records are of one variant; weights are compared where both have a checksum of them."""
    checksums = [[splice.get(CHECKSUM) for splice in record.get("splices") or []] for record in (first, second)]
    return _spliced(first) == _spliced(second) and all(
        ours is None or theirs is None or ours == theirs for ours, theirs in zip(*checksums, strict=True)
    )


def _spliced(provenance: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is spliced where, and how."""
    splices = [tuple(splice.get(name) for name in OF_SPLICE) for splice in provenance.get("splices") or []]
    return splices, *(provenance.get(name) for name in OF_VARIANT)
