"""Fitting laws to measured losses: least squares on log L, with the joint covariance of the parameters.

Both laws are a floor plus powers, L = E + sum_j exp(l_j - s_j x_j) with x_j = log C, or log N and log D.
The logarithms are centred for the fit, because A and alpha are otherwise correlated at 0.999; the
covariance s^2 (J'J)^-1 is carried back linearly.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares, nnls

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling.laws import ComputeLaw, Covariance, ParametricLaw

START_EXPONENTS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7)


@dataclass(frozen=True, eq=False)
class _Fit:
    theta: np.ndarray  # (E, l_1.., s_1..) of the uncentred logarithms
    covariance: np.ndarray
    dof: int


def fit_parametric_law(
    params: ArrayLike, tokens: ArrayLike, loss: ArrayLike, /, *, name: str = "fitted", **details: Any
) -> ParametricLaw:
    """L(N, D) = E + A N^-alpha + B D^-beta from at least six runs. Loss in nats/token.

    `details` are fields of `ParametricLaw` (text, source, counts). Raises UserError for too few runs, for
    values that are not positive, and where N or D does not vary.
    """
    n, d, y = (_positive(what, value) for what, value in (("params", params), ("tokens", tokens), ("loss", loss)))
    fit = _fit(np.column_stack([np.log(n), np.log(d)]), y, name=name)
    floor, log_a, log_b, alpha, beta = (float(value) for value in fit.theta)
    ranges = {
        "params_range": (n.min(), n.max()),
        "flops_range": ((6 * n * d).min(), (6 * n * d).max()),
        "loss_range": (y.min(), y.max()),
    }
    return ParametricLaw(
        name=name,
        E=floor,
        A=math.exp(log_a),
        alpha=alpha,
        B=math.exp(log_b),
        beta=beta,
        covariance=_covariance(fit),
        **{"source": f"fitted to {len(y)} runs", **ranges, **details},
    )


def fit_compute_law(flops: ArrayLike, loss: ArrayLike, /, *, name: str = "fitted", **details: Any) -> ComputeLaw:
    """L(C) = E + K C^-gamma from at least four models. Loss in nats/token.

    `details` are fields of `ComputeLaw` (text, source, flops). Raises UserError as `fit_parametric_law`.
    """
    c, y = (_positive(what, value) for what, value in (("flops", flops), ("loss", loss)))
    fit = _fit(np.log(c)[:, None], y, name=name)
    floor, log_k, gamma = (float(value) for value in fit.theta)
    ranges = {"flops_range": (c.min(), c.max()), "loss_range": (y.min(), y.max())}
    return ComputeLaw(
        name=name,
        E=floor,
        K=math.exp(log_k),
        gamma=gamma,
        covariance=_covariance(fit),
        **{"source": f"fitted to {len(y)} models", **ranges, **details},
    )


def residual_scale(law: ComputeLaw, flops: np.ndarray, loss: np.ndarray) -> float:
    """Standard deviation of log L around a law fitted to the same points, with n - 3 degrees of freedom."""
    residuals = np.log(loss) - np.log(law.optimal_loss(flops))
    return float(np.sqrt(np.sum(residuals**2) / (len(loss) - len(law.theta))))


def _positive(what: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not (np.isfinite(array).all() and (array > 0).all()):
        raise UserError(f"{what} must be a list of positive numbers.")
    return array


def _covariance(fit: _Fit) -> Covariance:
    return Covariance(matrix=fit.covariance, dof=fit.dof, source="s^2 (J'J)^-1 of the least-squares fit on log L")


def _fit(x: np.ndarray, loss: np.ndarray, *, name: str) -> _Fit:
    terms = x.shape[1]
    needed = 2 + 2 * terms
    if len(loss) != len(x) or len(loss) < needed:
        raise UserError(f"Fit {name!r}: {len(loss)} points; a law with {needed - 1} parameters needs {needed}.")
    if any(len(np.unique(column)) < 3 for column in x.T):
        raise UserError(f"Fit {name!r}: each of parameters, tokens or compute must take three values or more.")
    centre = x.mean(axis=0)
    z = x - centre
    lower = np.r_[0.0, np.full(terms, -np.inf), np.full(terms, 1e-4)]
    solution = least_squares(
        lambda theta: np.log(_model(theta, z)[0] / loss),
        np.maximum(_start(z, loss), lower + 1e-6),
        jac=lambda theta: _jacobian(theta, z),  # pyright: ignore[reportArgumentType]  # scipy takes callables
        bounds=(lower, np.inf),
        x_scale="jac",
        ftol=1e-13,
        xtol=1e-13,
        gtol=1e-13,
    )
    dof = len(loss) - len(solution.x)
    jacobian = _jacobian(solution.x, z)
    variance = np.sum(solution.fun**2) / dof
    uncentre = np.eye(len(solution.x))
    uncentre[1 : 1 + terms, 1 + terms :] = np.diag(centre)
    covariance = uncentre @ (variance * np.linalg.pinv(jacobian.T @ jacobian)) @ uncentre.T
    return _Fit(uncentre @ solution.x, covariance, dof)


def _model(theta: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    terms = z.shape[1]
    powers = np.exp(theta[1 : 1 + terms] - theta[1 + terms :] * z)
    return theta[0] + powers.sum(axis=1), powers


def _jacobian(theta: np.ndarray, z: np.ndarray) -> np.ndarray:
    loss, powers = _model(theta, z)
    return np.column_stack([np.ones(len(z)), powers, -powers * z]) / loss[:, None]


def _start(z: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Best of a grid of exponents; for given exponents the law is linear in E and the coefficients."""
    best = (np.inf, np.empty(0))
    for exponents in itertools.product(START_EXPONENTS, repeat=z.shape[1]):
        design = np.column_stack([np.ones(len(z)), np.exp(-np.array(exponents) * z)])
        weights, misfit = nnls(design / loss[:, None], np.ones(len(loss)))
        if misfit < best[0] and (weights[1:] > 0).all():
            best = (misfit, np.r_[weights[0], np.log(weights[1:]), exponents])
    if not len(best[1]):
        raise UserError("The losses do not fall with size or compute, so no law fits them.")
    return best[1]
