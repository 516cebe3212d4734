"""The schema of a law's JSON entry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictFloat, StrictStr, field_validator, model_validator

from sae_lm_eval.files.reading import Foreign

Floor = Annotated[StrictFloat, Field(ge=0, le=1e3, allow_inf_nan=False)]
Factor = Annotated[StrictFloat, Field(gt=0, le=1e30, allow_inf_nan=False)]
Exponent = Annotated[StrictFloat, Field(ge=1e-3, le=10, allow_inf_nan=False)]
Amount = Annotated[StrictFloat, Field(gt=0, le=1e60, allow_inf_nan=False)]
Finite = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Span = tuple[Amount, Amount]


class CovarianceEntry(Foreign):
    """Of the constants that `order` names; lnE stands for log E."""

    order: list[StrictStr]
    matrix: list[list[Finite]]
    dof: Annotated[StrictFloat, Field(ge=1, allow_inf_nan=False)]
    source: StrictStr = "given by the user"

    @model_validator(mode="after")
    def _is_a_covariance(self) -> CovarianceEntry:
        import numpy as np

        size = len(self.order)
        if len(self.matrix) != size or any(len(row) != size for row in self.matrix):
            raise ValueError(f"the matrix must be square, over {', '.join(self.order)}")
        matrix = np.array(self.matrix, dtype=float).reshape(size, size)
        largest = np.abs(matrix).max(initial=0)
        if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-9 * largest):
            raise ValueError("the matrix must be symmetric")
        if size and np.linalg.eigvalsh(matrix).min() < -1e-6 * largest:
            raise ValueError("the matrix must have no negative eigenvalue")
        return self


class LawEntry(Foreign):
    """What laws of both forms have."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[StrictStr, Field(min_length=1, max_length=200)]
    E: Floor
    text: StrictStr = "unstated"
    source: StrictStr = "given by the user"
    flops_range: Span | None = None
    loss_range: Span | None = None
    covariance: CovarianceEntry | None = None
    no_covariance: StrictStr | None = None
    superseded: StrictStr = ""
    tokenizer: StrictStr = ""
    bytes_per_token: Amount | None = None

    @field_validator("flops_range", "loss_range", "params_range", check_fields=False)
    @classmethod
    def _rises(cls, span: tuple[float, float] | None) -> tuple[float, float] | None:
        if span is not None and span[0] >= span[1]:
            raise ValueError("the second number of a range must be the greater one")
        return span


class ParametricEntry(LawEntry):
    form: Literal["parametric"] = "parametric"
    A: Factor
    alpha: Exponent
    B: Factor
    beta: Exponent
    counts: Literal["total", "non-embedding"] = "total"
    params_range: Span | None = None


class ComputeEntry(LawEntry):
    form: Literal["compute"] = "compute"
    K: Factor
    gamma: Exponent
    flops: StrictStr = "6ND"


ENTRIES: dict[str, type[LawEntry]] = {"parametric": ParametricEntry, "compute": ComputeEntry}


def given(entry: LawEntry) -> dict[str, Any]:
    """What an entry says, without its form and what it leaves open."""
    values = {name: getattr(entry, name) for name in entry.model_fields_set if name != "form"}
    return {name: value for name, value in values.items() if value is not None}
