"""The schemas of the files that lm_eval writes, as far as they are read: results with what sae_hf adds, and samples.

Versions of lm_eval differ in what else they write, which is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt, StrictStr, field_validator, model_validator

from sae_lm_eval.files.reading import Foreign

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Positive = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Share = Annotated[StrictFloat, Field(ge=0)]
LAST_DATE = 32_503_680_000  # seconds, in the year 3000


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else [] if value is None else value


# A number, or "N/A" and the like, which are none.
Score = Annotated[StrictFloat | None, BeforeValidator(lambda value: None if isinstance(value, str) else value)]
Texts = Annotated[list[StrictStr], BeforeValidator(_listed)]
OptionalText = StrictStr | None


class SpliceEntry(Foreign):
    dictionary: StrictStr
    hook_in: OptionalText = None
    hook_out: OptionalText = None
    d_dictionary: Positive | None = None
    first_position: Count | None = None
    scale: StrictFloat = 1.0


class EditEntry(Foreign):
    name: StrictStr
    kind: OptionalText = None


class AdapterEntry(Foreign):
    name: StrictStr
    kind: OptionalText = None
    trained_on: OptionalText = None
    weights_checksum: OptionalText = None


class KlAtAnswers(Foreign):
    kl: StrictFloat | None
    stderr: StrictFloat | None = None
    positions: Positive


class PartedTextsOfTask(Foreign):
    texts: Positive
    parted: Count
    together: dict[Annotated[int, Field(gt=0, strict=False)], StrictFloat]


class CutPromptsEntry(Foreign):
    prompts: Positive
    cut: Positive
    tokens_of_cut_prompts: Positive
    tokens_lost: Count


class Released(Foreign):
    name: Literal["l0", "fvu", "norm_in", "norm_out"]
    stated: StrictFloat
    measured: StrictFloat
    ratio: StrictFloat


class AsReleased(Foreign):
    site: StrictStr
    numbers: list[Released]
    agrees: bool | None = None
    verdict: StrictStr


class CategoryEntry(Foreign):
    documents: Count | None = None
    tokens: Count | None = None
    ce_baseline: StrictFloat | None = None
    ce_spliced: StrictFloat | None = None
    ce_delta_stderr: StrictFloat | None = None
    ce_zero: StrictFloat | None = None
    ce_mean: StrictFloat | None = None
    loss_recovered_zero: StrictFloat | None = None
    loss_recovered_mean: StrictFloat | None = None


class FidelityEntry(Foreign):
    by_category: Annotated[dict[str, CategoryEntry], BeforeValidator(_or_empty)] = Field(default_factory=dict)
    as_released: Annotated[list[AsReleased], BeforeValidator(_listed)] = Field(default_factory=list)


class ConvertedEntry(Foreign):
    """Effective compute as the run recorded it."""

    fraction: StrictFloat | None = None
    low: StrictFloat | None = None
    high: StrictFloat | None = None
    law: OptionalText = None
    reason: OptionalText = None
    bound: OptionalText = None
    flags: Texts = Field(default_factory=list)
    vocabulary: Positive | None = None


class NoiseFloor(Foreign):
    kl: StrictFloat
    flips: StrictFloat
    ce_delta: StrictFloat
    tokens: Count
    sequences: Count
    rows: Annotated[list[Count], Field(min_length=2)]


class SaeEntry(Foreign):
    """What sae_hf adds to the results under config.sae_lm_eval."""

    splices: Annotated[list[SpliceEntry], BeforeValidator(_listed)] = Field(default_factory=list)
    edit: EditEntry | None = None
    adapter: AdapterEntry | None = None
    splice: OptionalText = None
    scale: StrictFloat = 1.0
    splice_tokens: OptionalText = None
    bos: OptionalText = None
    max_length: Positive | None = None
    packages: Annotated[dict[str, StrictStr], BeforeValidator(_or_empty)] = Field(default_factory=dict)
    noise_floor: NoiseFloor | None = None
    kl_at_answers: Annotated[dict[str, KlAtAnswers], BeforeValidator(_or_empty)] = Field(default_factory=dict)
    parted_texts: Annotated[dict[str, PartedTextsOfTask], BeforeValidator(_or_empty)] = Field(default_factory=dict)
    cut_prompts: Annotated[dict[str, CutPromptsEntry], BeforeValidator(_or_empty)] = Field(default_factory=dict)
    fidelity: Annotated[dict[str, FidelityEntry], BeforeValidator(_or_empty)] = Field(default_factory=dict)
    effective_compute: Annotated[
        dict[str, Annotated[ConvertedEntry, BeforeValidator(_or_empty)]], BeforeValidator(_or_empty)
    ] = Field(default_factory=dict)


class Config(Foreign):
    model: OptionalText = None
    model_args: Annotated[dict[str, Any] | StrictStr, BeforeValidator(_or_empty)] = Field(default_factory=dict)
    model_revision: OptionalText = None
    model_num_parameters: Count | None = None
    limit: Annotated[StrictInt | StrictFloat, Field(ge=0, le=1e12)] | None = None
    sae_lm_eval: Annotated[SaeEntry, BeforeValidator(_or_empty)] = SaeEntry()


class TaskConfig(Foreign):
    output_type: OptionalText = None
    fewshot_delimiter: OptionalText = None
    metadata: Annotated[dict[str, Any], BeforeValidator(_or_empty)] = Field(default_factory=dict)


class Documents(Foreign):
    effective: Count


class ResultsFile(Foreign):
    results: dict[str, dict[str, Any]]
    n_samples: dict[str, Documents] = Field(alias="n-samples")
    n_shot: dict[str, StrictInt | StrictStr | None] = Field(alias="n-shot")
    versions: dict[str, StrictInt | StrictFloat | StrictStr | None]
    higher_is_better: dict[str, Annotated[dict[str, bool | None], BeforeValidator(_or_empty)]]
    group_subtasks: Annotated[dict[str, Texts], BeforeValidator(_or_empty)] = Field(default_factory=dict)
    configs: Annotated[dict[str, TaskConfig], BeforeValidator(_or_empty)] = Field(default_factory=dict)
    config: Annotated[Config, BeforeValidator(_or_empty)] = Config()
    model_name: OptionalText = None
    date: Annotated[StrictFloat, Field(ge=0, le=LAST_DATE)] | None = None
    system_instruction: OptionalText = None
    lm_eval_version: OptionalText = None
    transformers_version: OptionalText = None

    @field_validator("group_subtasks")
    @classmethod
    def _no_circle(cls, groups: dict[str, list[str]]) -> dict[str, list[str]]:
        left = {group: {member for member in members if member in groups} for group, members in groups.items()}
        while ends := [group for group, members in left.items() if not members]:
            left = {group: members.difference(ends) for group, members in left.items() if group not in ends}
        if left:
            raise ValueError(f"the group {min(left)} must not be inside itself")
        return groups


class TaskScores(Foreign):
    """The numbers of a task or group by "metric,filter", and what it is called."""

    alias: OptionalText = None
    sample_len: Count | None = None
    scores: dict[str, Score] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        named = {key: given[key] for key in ("alias", "sample_len") if key in given}
        return {**named, "scores": {key: value for key, value in given.items() if "," in key}}


class Sample(Foreign):
    """A document with its requests, the answers and the metrics, each under its own name."""

    doc_id: Count
    doc: Annotated[dict[str, Any], BeforeValidator(lambda doc: doc if isinstance(doc, dict) else {})]
    target: Any
    arguments: dict[str, dict[str, Any]]
    resps: list[Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=list)
    filtered_resps: list[Any]
    filter: StrictStr
    doc_hash: StrictStr
    prompt_hash: StrictStr
    target_hash: StrictStr
    metrics: list[StrictStr]

    @model_validator(mode="after")
    def _has_its_metrics(self) -> Sample:
        own = type(self).model_fields
        for name in self.metrics:
            if name in own or name not in (self.model_extra or {}):
                raise ValueError(f"the metric '{name}' must have a value of its own")
        return self
