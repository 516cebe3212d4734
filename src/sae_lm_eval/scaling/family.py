"""Measured curves: the losses of several models, or of the checkpoints of one, on the same text.

A family is read from a CSV with a `loss` column (nats/token) and, for the compute of each row, `flops`,
or `params` and `tokens`; checkpoints may give `tokens` or `step` alone, because the parameters cancel. A `model` may
have a `revision` beside it.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign
from sae_lm_eval.scaling.data_files import Amount, Loss, Name, Row, data_path, read_rows, unknown
from sae_lm_eval.scaling.fit import fit_compute_law, residual_scale
from sae_lm_eval.scaling.laws import ComputeLaw

Kind = Literal["family", "checkpoints"]


class CurveRow(Foreign):
    """What a curve may say of each of its models or checkpoints."""

    flops: Amount | None = None
    step: Amount | None = None
    source: Name | None = None
    tokenizer: Name | None = None


class FamilyRow(CurveRow):
    """A model or a checkpoint of a CSV of the user's."""

    model: Name | None = None
    revision: Name | None = None
    loss: Loss | None
    params: Amount | None = None
    tokens: Amount | None = None
    text: Name | None = None


NORMAL_MEDIAN = 0.6745  # of |z| of a standard normal z
LEAST_MEMBERS = 4  # of a family that a law is fitted to


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """Losses (nats/token) of models by training compute, sorted by compute, on one text.

    `compute` is in `unit`: FLOPs, or tokens or steps for the checkpoints of one model. `bytes_per_token` is that of the
    `tokenizer` that the losses are per token of.
    """

    name: str
    kind: Kind
    models: tuple[str, ...]
    compute: np.ndarray
    loss: np.ndarray
    unit: str = "FLOPs"
    text: str = "unstated"
    source: str = "given by the user"
    tokenizer: str = ""
    bytes_per_token: float | None = None
    flags: tuple[str, ...] = ()

    @functools.cached_property
    def fit(self) -> ComputeLaw | None:
        """L = E + K C^-gamma through the points; None with fewer than four."""
        if len(self.loss) < LEAST_MEMBERS or len(np.unique(self.compute)) < 3:
            return None
        ranges = {"text": self.text, "source": f"least squares on log L of {self.name}", "flops": self.unit}
        return fit_compute_law(self.compute, self.loss, name=self.name, **ranges)

    @functools.cached_property
    def scatter(self) -> tuple[float, float] | None:
        """Standard deviation of log L around a smooth curve and its degrees of freedom; None if unknown.

        Models of a family scatter around their fitted law. The course of one training run follows no power law, so
        the checkpoints' scatter comes from pseudo-residuals: of each inner checkpoint, how far it lies from the
        straight line between its neighbours, scaled to the variance of the losses (Gasser, Sroka and
        Jennen-Steinmetz 1986, Biometrika 73). Their n-2 terms are worth 18/35 of a degree of freedom each. Where a
        curve bends sharply, as it does at the start of training, such a distance is curvature and not scatter.
        Therefore the scale is their median absolute value, divided by the normal distribution's .6745.
        """
        if self.kind == "family":
            return None if self.fit is None else (residual_scale(self.fit, self.compute, self.loss), len(self.loss) - 3)
        if len(self.loss) < 5:
            return None
        x, y = np.log(self.compute), np.log(self.loss)
        left = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
        pseudo = y[1:-1] - left * y[:-2] - (1 - left) * y[2:]
        scaled = pseudo / np.sqrt(1 + left**2 + (1 - left) ** 2)
        return float(np.median(np.abs(scaled)) / NORMAL_MEDIAN), (len(y) - 2) * 18 / 35


@dataclass(frozen=True, eq=False)
class MonotoneCurve:
    """log compute as a monotone function of the loss, by isotonic regression and PCHIP interpolation.

    Losses that do not fall with compute are pooled (pool-adjacent-violators); each pool is one knot at its
    mean log compute, so that the curve is strictly falling and has one inverse.
    """

    log_compute: np.ndarray
    loss: np.ndarray  # strictly falling

    @property
    def best(self) -> float:
        return float(self.loss[-1])

    @property
    def worst(self) -> float:
        return float(self.loss[0])

    def log_compute_at(self, loss: np.ndarray | float) -> np.ndarray:
        """log C(L); +inf below the best loss and -inf above the worst, where the curve says no more."""
        target = np.asarray(loss, dtype=float)
        inside = PchipInterpolator(self.loss[::-1], self.log_compute[::-1])(np.clip(target, self.best, self.worst))
        slack = 1e-12 * self.worst
        return np.where(target < self.best - slack, np.inf, np.where(target > self.worst + slack, -np.inf, inside))


def monotone_curve(compute: np.ndarray, loss: np.ndarray, *, end: Literal["pooled", "own"] = "pooled") -> MonotoneCurve:
    """The monotone curve through measured points; raises UserError when fewer than two knots remain.

    With end="own" the last knot stays at the last point's compute, with whatever other points that is pooled: for
    checkpoints, whose last point is the original.
    """
    log_compute = np.log(compute)
    pooled = isotonic_regression(loss, increasing=False)
    starts = np.asarray(pooled.blocks)
    centres = np.add.reduceat(log_compute, starts[:-1]) / np.diff(starts)
    if len(centres) < 2:
        raise UserError("The measured losses do not fall with compute, so there is no curve to interpolate.")
    if end == "own":
        centres[-1] = log_compute[-1]
    return MonotoneCurve(centres, pooled.x[starts[:-1]])


def builtin_families() -> tuple[str, ...]:
    """Names of the families that come with the package."""
    return tuple(dict.fromkeys(row["family"] for row in _builtin()))


def read_family(source: str | Path, *, kind: Kind = "family") -> Family:
    """A family from a CSV file, or one of `builtin_families()` by name.

    Raises `UserError` for what is no curve: losses on different texts or of different tokenizers, a row that is there
    twice, too few that differ.
    """
    if str(source) in builtin_families():
        rows = [row for row in _builtin() if row["family"] == str(source)]
        return family_of(rows, name=str(source), kind=kind, where=str(source))
    path = Path(source)
    if path.suffix != ".csv":
        raise unknown("CSV file or built-in family", str(source), builtin_families())
    rows = read_rows(path, required=["loss"], kind=FamilyRow)
    tokenizers = list(dict.fromkeys(str(row["tokenizer"]) for row in rows if row.get("tokenizer")))
    if len(tokenizers) > 1:
        raise UserError(
            f"{path}: losses per token of different tokenizers ({'; '.join(tokenizers)}) are not one curve."
        )
    amounts = ("model", "revision", "flops", "params", "tokens", "step")
    points = [tuple(row.get(name) for name in amounts) for row in rows if row.get("model")]
    if twice := next((point for point in points if points.count(point) > 1), None):
        raise UserError(f"{path} has {twice[0]} twice.")
    return family_of(rows, name=path.stem, kind=kind, where=str(path))


@functools.cache
def published_families() -> tuple[Family, ...]:
    """The families that come with the package, by 6ND where parameters and tokens are known, else by their FLOPs."""
    families = []
    for name in builtin_families():
        rows = [dict(row) for row in _builtin() if row["family"] == name]
        if all(row["params"] and row["tokens"] for row in rows):
            rows = [{key: value for key, value in row.items() if key != "flops"} for row in rows]
        families.append(family_of(rows, name=name, kind="family", where=name))
    return tuple(families)


@functools.cache
def _builtin() -> tuple[Row, ...]:
    return tuple(read_rows(data_path("families.csv"), required=["family", "model", "flops", "loss"]))


def family_of(rows: Sequence[Row], *, name: str, kind: Kind, where: str) -> Family:
    """A family from rows as its file has them; `where` names them in errors."""
    unit, compute = training_compute(rows, kind=kind, where=where)
    loss = _numbers(rows, "loss", where=where)
    models = np.array([row_name(row, f"row {i + 1}") for i, row in enumerate(rows)])
    usable = np.isfinite(loss) & (loss > 0) & np.isfinite(compute) & (compute >= 0)
    if not usable.all():
        raise UserError(f"{where}: {models[~usable][0]} has no usable loss or {unit}.")
    flags = []
    trained = compute > 0
    if not trained.all():
        flags.append(f"untrained rows left out ({', '.join(models[~trained])}): zero {unit} have no logarithm")
    amounts, place = np.unique(compute[trained], return_inverse=True)
    if len(amounts) < 2:
        raise UserError(f"{where}: a curve needs two rows or more that differ in {unit}.")
    tokens = _numbers(rows, "tokens", where=where)
    if kind == "family" and len(np.unique(tokens)) == 1 and np.isfinite(tokens).all():
        flags.append(
            "every member saw the same number of tokens, so along this family effective compute is effective "
            "parameters at fixed tokens"
        )
    return Family(
        name=name,
        kind=kind,
        models=tuple("/".join(models[trained][place == i]) for i in range(len(amounts))),
        compute=amounts,
        loss=np.bincount(place, weights=loss[trained]) / np.bincount(place),
        unit=unit,
        text=_one(rows, "text", where=where) or "unstated",
        source=_one(rows, "source", where=where) or where,
        tokenizer=_one(rows, "tokenizer", where=where),
        flags=tuple(flags),
    )


def row_name(row: Row, otherwise: str = "") -> str:
    """A row's model, with its revision where that is not the main one."""
    name, revision = str(row.get("model") or otherwise), row.get("revision")
    return name if revision in (None, "main") else f"{name}@{revision}"


def training_compute(rows: Sequence[Row], *, kind: Kind, where: str) -> tuple[str, np.ndarray]:
    """Unit and amount of each row's compute: FLOPs, or of checkpoints tokens or steps; NaN where a row has none."""
    flops, params, tokens, step = (_numbers(rows, name, where=where) for name in ("flops", "params", "tokens", "step"))
    choices = [("FLOPs", flops), ("FLOPs", 6 * params * tokens)]
    if kind == "checkpoints":  # of one model: the parameters cancel in the ratio
        choices += [("tokens", tokens), ("steps", step)]
    for unit, amount in choices:
        if np.isfinite(amount).any():
            return unit, amount
    wanted = "flops, tokens or step" if kind == "checkpoints" else "flops, or params and tokens,"
    raise UserError(f"{where}: {kind} need a column {wanted} beside loss.")


def _numbers(rows: Sequence[Row], column: str, *, where: str) -> np.ndarray:
    """A column as floats; NaN stands for an empty or absent cell."""
    try:
        return np.array([math.nan if row.get(column) is None else float(row[column]) for row in rows])
    except ValueError as error:
        raise UserError(f"{where}: column {column} holds something other than a number ({error}).") from error


def _one(rows: Sequence[Row], column: str, *, where: str) -> str:
    """The single value of a column that describes the whole family, or an empty string."""
    values = list(dict.fromkeys(str(row[column]) for row in rows if row.get(column) is not None))
    if len(values) > 1 and column == "text":
        raise UserError(f"{where}: losses on different texts ({'; '.join(values)}) are not one curve.")
    return "; ".join(values)
