"""Scaling laws as frozen values in a table by name. Losses in nats/token, compute in FLOPs.

`ParametricLaw`  L(N, D) = E + A N^-alpha + B D^-beta            (Hoffmann et al. 2022, approach 3)
`ComputeLaw`     L(C)    = E + K C^-gamma                        (the compute-optimal frontier alone)

On the frontier C = 6ND the first gives the second, with gamma = alpha beta/(alpha+beta),
G = (alpha A/(beta B))^(1/(alpha+beta)) and K = 6^gamma (A G^-alpha + B G^beta).
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np

from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.files.reading import checked, read_json, shown
from sae_lm_eval.scaling.data_files import data_path, unknown
from sae_lm_eval.scaling.law_file import ENTRIES, CovarianceEntry, given

DEFAULT_LAW = "besiroglu2024"
UNKNOWN_COVARIANCE = "this law was given without a covariance"  # why there is none, where nothing else is said
Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Covariance:
    """Joint uncertainty of a law's parameters, in the order of the law's `theta`.

    The parameters of one fit are correlated at up to 0.999 (log A with alpha), so they only make sense
    together. `dof` are the degrees of freedom of the residual variance.
    """

    matrix: np.ndarray
    dof: float
    source: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ParametricLaw:
    """L(N, D) = E + A N^-alpha + B D^-beta, nats/token. N is counted as `counts` says, D in tokens.

    `bytes_per_token` is that of its `tokenizer` on its text.
    """

    name: str
    E: float
    A: float
    alpha: float
    B: float
    beta: float
    text: str = "unstated"
    source: str = "given by the user"
    counts: Literal["total", "non-embedding"] = "total"
    params_range: Span | None = None
    flops_range: Span | None = None
    loss_range: Span | None = None
    covariance: Covariance | None = None
    no_covariance: str = UNKNOWN_COVARIANCE
    superseded: str = ""
    tokenizer: str = ""
    bytes_per_token: float | None = None
    units: ClassVar[str] = "nats/token"
    flops: ClassVar[str] = "6ND"

    def __post_init__(self) -> None:
        _check_positive(self.name, {k: getattr(self, k) for k in ("A", "alpha", "B", "beta")})
        _check_length(self.name, self.bytes_per_token)
        _check_floor(self.name, self.E)

    @property
    def gamma(self) -> float:
        return self.alpha * self.beta / (self.alpha + self.beta)

    @property
    def G(self) -> float:
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    @property
    def K(self) -> float:
        return 6**self.gamma * (self.A * self.G**-self.alpha + self.B * self.G**self.beta)

    @property
    def theta(self) -> np.ndarray:
        """(E, log A, log B, alpha, beta)."""
        return np.array([self.E, math.log(self.A), math.log(self.B), self.alpha, self.beta])

    @property
    def constants(self) -> dict[str, float]:
        return {"E": self.E, "A": self.A, "alpha": self.alpha, "B": self.B, "beta": self.beta}

    def loss(self, params: Any, tokens: Any) -> Any:
        """Loss of N parameters trained on D tokens, nats/token."""
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def optimal_params(self, flops: Any) -> Any:
        """N that minimises the loss at C = 6ND: G (C/6)^(beta/(alpha+beta))."""
        return self.G * (flops / 6) ** (self.beta / (self.alpha + self.beta))

    def optimal_tokens(self, flops: Any) -> Any:
        """D that minimises the loss at C = 6ND: (C/6)^(alpha/(alpha+beta)) / G."""
        return (flops / 6) ** (self.alpha / (self.alpha + self.beta)) / self.G

    def optimal_loss(self, flops: Any) -> Any:
        """L*(C) = E + K C^-gamma, nats/token."""
        return self.E + self.K * flops**-self.gamma

    def optimal_flops(self, reducible: Any) -> Any:
        """C*(L) = (K/(L-E))^(1/gamma) for the reducible loss L-E > 0, FLOPs."""
        return (self.K / reducible) ** (1 / self.gamma)


@dataclass(frozen=True, kw_only=True, eq=False)
class ComputeLaw:
    """L(C) = E + K C^-gamma, nats/token, C counted as `flops` says."""

    name: str
    E: float
    K: float
    gamma: float
    text: str = "unstated"
    source: str = "given by the user"
    flops: str = "6ND"
    flops_range: Span | None = None
    loss_range: Span | None = None
    covariance: Covariance | None = None
    no_covariance: str = UNKNOWN_COVARIANCE
    superseded: str = ""
    tokenizer: str = ""
    bytes_per_token: float | None = None
    units: ClassVar[str] = "nats/token"
    params_range: ClassVar[None] = None

    def __post_init__(self) -> None:
        _check_positive(self.name, {"K": self.K, "gamma": self.gamma})
        _check_length(self.name, self.bytes_per_token)
        _check_floor(self.name, self.E)

    @property
    def theta(self) -> np.ndarray:
        """(E, log K, gamma)."""
        return np.array([self.E, math.log(self.K), self.gamma])

    @property
    def constants(self) -> dict[str, float]:
        return {"E": self.E, "K": self.K, "gamma": self.gamma}

    def optimal_loss(self, flops: Any) -> Any:
        """L(C) = E + K C^-gamma, nats/token."""
        return self.E + self.K * flops**-self.gamma

    def optimal_flops(self, reducible: Any) -> Any:
        """C(L) = (K/(L-E))^(1/gamma) for the reducible loss L-E > 0, FLOPs."""
        return (self.K / reducible) ** (1 / self.gamma)


Law = ParametricLaw | ComputeLaw
FORMS: dict[str, type[ParametricLaw] | type[ComputeLaw]] = {
    "parametric": ParametricLaw,
    "compute": ComputeLaw,
}


def _check_positive(law: str, values: dict[str, float]) -> None:
    for key, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"Law {law!r}: {key} is {value}; it must be a positive number.")


def _check_length(law: str, value: float | None) -> None:
    if value is not None:
        _check_positive(law, {"bytes_per_token": value})


def _check_floor(law: str, floor: float) -> None:
    if not (math.isfinite(floor) and floor >= 0):
        raise UserError(f"Law {law!r}: E is {floor}; the irreducible loss must be 0 or more, in nats/token.")


def law_from_dict(entry: dict[str, Any], *, where: str) -> Law:
    """A law from its JSON entry; raises `UserError` that names the file, the field and what was expected."""
    form = one_of(entry.get("form", "parametric" if "A" in entry else "compute"), ENTRIES, f"{where}: the form")
    held = checked(ENTRIES[form], entry, where, f"a {form} law")
    values = given(held)
    if held.covariance is not None:
        values["covariance"] = _covariance(held.covariance, values, where=where)
    law = FORMS[form](**values)
    if not _has_frontier(law):
        raise UserError(f"{where}: the compute-optimal frontier of these constants cannot be computed.")
    return law


def _has_frontier(law: Law) -> bool:
    try:
        derived = (law.K,) if isinstance(law, ComputeLaw) else (law.G, law.K)
    except (OverflowError, ZeroDivisionError):
        return False
    return all(math.isfinite(value) and value > 0 for value in derived)


def _covariance(entry: CovarianceEntry, law: dict[str, Any], *, where: str) -> Covariance:
    """Reorder to `theta`; a covariance of log E becomes one of E by the chain rule (dE = E dlogE)."""
    order = ("E", "lnA", "lnB", "alpha", "beta") if "A" in law else ("E", "lnK", "gamma")
    names = ["E" if name == "lnE" else name for name in entry.order]
    if sorted(names) != sorted(order):
        raise UserError(f"{where}: the covariance must be square, over {', '.join(order)} (or lnE for E).")
    scale = np.array([law["E"] if name == "lnE" else 1.0 for name in entry.order])
    matrix = np.array(entry.matrix, dtype=float) * np.outer(scale, scale)
    place = [names.index(name) for name in order]
    return Covariance(matrix=matrix[np.ix_(place, place)], dof=entry.dof, source=entry.source)


@functools.cache
def laws() -> Mapping[str, Law]:
    """The table of laws by name, in the order in which they are shown."""
    entries = json.loads(data_path("laws.json").read_text(encoding="utf-8"))
    return MappingProxyType({entry["name"]: law_from_dict(entry, where="laws.json") for entry in entries})


def get_law(name: str | Path) -> Law:
    """A law by its name in the table, or from a JSON file of constants (see docs/effective-compute.md)."""
    if str(name).endswith(".json"):
        path = Path(name)
        return law_from_dict({"name": path.stem, **read_json(path, dict[str, Any], "a law")}, where=f"'{shown(path)}'")
    if str(name) not in laws():
        raise unknown("law", str(name), laws())
    return laws()[str(name)]
