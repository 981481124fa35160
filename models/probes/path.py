"""Elastic net over a path of penalties, exactly: ridge in the space of the cases, L1 by screened proximal gradient.

The objective of every model is

.. math:: L(b + X w) + \\lambda \\sum_j f_j \\Big[ \\alpha \\|w_j\\|_1 + \\tfrac{1 - \\alpha}{2} \\|w_j\\|_2^2 \\Big]

with L the mean loss per case (per event under Cox's model), :math:`\\alpha` the ``l1_ratio`` and :math:`f_j` the
factor of column j (Zou and Hastie, J. R. Stat. Soc. B 67, 2005; Friedman, Hastie and Tibshirani, J. Stat. Softw. 33,
2010). Intercepts are not penalised. With L1, the sequential strong rule (Tibshirani et al., J. R. Stat. Soc. B 74,
2012) chooses the columns that are looked at, and the optimality conditions of all others are checked afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import ArrayLike

from equipoise.models.probes.likelihoods import Array, Likelihood
from equipoise.models.probes.proximal import kkt_residual, minimise_l1
from equipoise.models.probes.smooth import RowSpace, Weights, backward, minimise, outputs_of

#: A ridge has no penalty that sets all weights to zero: its path starts where this ``l1_ratio`` would.
RIDGE_START = 1e-3


@dataclass(frozen=True)
class LinearFit:
    """A linear model: outputs are ``x @ weights + intercept``.

    Attributes
    ----------
    weights
        ``[p, K]``.
    intercept
        ``[K]``; 0 under Cox's model.
    """

    weights: Array
    intercept: Array

    def outputs(self, x: ArrayLike) -> Array:
        """``[n, K]`` outputs of rows ``[n, p]``."""
        return np.asarray(x, np.float64) @ self.weights + self.intercept


@dataclass(frozen=True)
class Path:
    """Models over L penalties, for each of F sets of cases.

    Attributes
    ----------
    penalties
        ``[L]`` descending.
    weights
        ``[L, F, p, K]``.
    intercepts
        ``[L, F, K]``.
    """

    penalties: Array
    weights: Array
    intercepts: Array

    def fit(self, penalty: int, use: int = 0) -> LinearFit:
        """The model of one penalty and one set of cases."""
        return LinearFit(self.weights[penalty, use], self.intercepts[penalty, use])


@dataclass(frozen=True)
class Step:
    """Models of one penalty for F sets of cases.

    Attributes
    ----------
    penalty
        :math:`\\lambda`.
    outputs
        ``[n, K, F]`` outputs of every model for all rows.
    """

    penalty: float
    outputs: Array
    _weights: Callable[[], tuple[Array, Array]]

    @cached_property
    def models(self) -> tuple[Array, Array]:
        """Weights ``[F, p, K]`` and intercepts ``[F, K]``; a ridge computes them only when they are asked for."""
        return self._weights()

    def fit(self, use: int = 0) -> LinearFit:
        """The model of one set of cases."""
        weights, intercepts = self.models
        return LinearFit(weights[use], intercepts[use])


class Standardised:
    """Inputs of mean 0 and sd 1, and the space of their cases: what all ridges over the same columns share.

    Parameters
    ----------
    x
        ``[n, p]`` finite inputs.
    factors
        ``[p]`` above 0; 1 if not given.
    """

    def __init__(self, x: ArrayLike, factors: ArrayLike | None = None) -> None:
        self.x, self.factors = _checked_inputs(x, factors)
        # The loss of such columns is better conditioned; the penalty stays that of the given columns.
        self.shift = self.x.mean(axis=0)
        spread = self.x.std(axis=0)
        self.spread = np.where(spread > 1e-12 * np.maximum(1.0, np.abs(self.shift)), spread, 1.0)
        self.rows = (self.x - self.shift) / self.spread

    @cached_property
    def space(self) -> RowSpace:
        """Coordinates of a ridge whose penalty is that of the given columns."""
        return RowSpace(self.rows, self.factors / self.spread**2)


def penalty_grid(
    x: ArrayLike,
    likelihood: Likelihood,
    *,
    l1_ratio: float,
    factors: ArrayLike | None = None,
    use: ArrayLike | None = None,
    count: int = 20,
    ratio: float | None = None,
) -> Array:
    """Penalties from the smallest that sets all weights to zero, down by ``ratio``, equally spaced as logarithms.

    Parameters
    ----------
    x, likelihood, l1_ratio, factors
        As in :func:`walk_path`.
    use
        ``[n]`` 1 for the cases that count; all if not given.
    count, ratio
        Number of penalties, and the last one divided by the first. By default the ratio is 1e-2 with more columns than
        cases and 1e-4 otherwise, and a hundredth of that for a ridge.
    """
    x, factors, use = _checked(x, factors, use, likelihood)
    used = use[:, :1]
    eta = np.broadcast_to(null_model(likelihood, used), (len(x), likelihood.outputs, 1))
    slope = np.abs(backward(x, likelihood.at(eta, used).gradient)).max(axis=(1, 2))
    top = (slope / factors).max(initial=1e-12) / max(l1_ratio, RIDGE_START)
    if ratio is None:
        ratio = (1e-2 if x.shape[1] > used.sum() else 1e-4) * (1.0 if l1_ratio else 1e-2)
    return np.geomspace(top, top * ratio, count)


def fit_path(
    x: ArrayLike | Standardised,
    likelihood: Likelihood,
    penalties: ArrayLike,
    *,
    l1_ratio: float,
    factors: ArrayLike | None = None,
    use: ArrayLike | None = None,
    tolerance: float = 1e-7,
) -> Path:
    """Fit a model for every penalty and every set of cases; parameters and errors as in :func:`walk_path`."""
    steps = list(
        walk_path(x, likelihood, penalties, l1_ratio=l1_ratio, factors=factors, use=use, tolerance=tolerance)
    )
    return Path(
        np.array([step.penalty for step in steps]),
        np.stack([step.models[0] for step in steps]),
        np.stack([step.models[1] for step in steps]),
    )


def walk_path(
    x: ArrayLike | Standardised,
    likelihood: Likelihood,
    penalties: ArrayLike,
    *,
    l1_ratio: float,
    factors: ArrayLike | None = None,
    use: ArrayLike | None = None,
    tolerance: float = 1e-7,
    start: LinearFit | None = None,
) -> Iterator[Step]:
    """Models of one penalty after the other, from the largest down; what is not asked for is not computed.

    Parameters
    ----------
    x
        ``[n, p]`` finite inputs. Columns are penalised as they are: standardise them first.
        :class:`Standardised` inputs, which have their factors, are prepared once for several calls.
    likelihood
        The loss with its targets (:mod:`equipoise.models.probes.likelihoods`).
    penalties
        ``[L]`` :math:`\\lambda`, 0 or more; taken in descending order.
    l1_ratio
        :math:`\\alpha`, 0 (ridge) to 1 (lasso).
    factors
        ``[p]`` above 0, how strongly each column is penalised; 1 if not given.
    use
        ``[n]`` or ``[n, F]``, 1 where a model is fitted on a case: one column per inner fold. All cases if not given.
    tolerance
        Largest violation of the optimality conditions, in units of the mean loss per unit of a standardised column.
    start
        With L1, a model close to that of the first penalty, from which to begin.

    Raises
    ------
    ValueError
        If inputs are not finite, or shapes, penalties, factors or ``l1_ratio`` make no sense.
    """
    inputs = x if isinstance(x, Standardised) else Standardised(x, factors)
    use = _checked_use(len(inputs.x), use, likelihood)
    values = np.sort(np.asarray(penalties, np.float64).ravel())[::-1]
    if not 0 <= l1_ratio <= 1 or not len(values) or values[-1] < 0:
        raise ValueError(
            f"l1_ratio is between 0 and 1 and penalties are 0 or more, not {l1_ratio} and {values}"
        )
    steps = (
        _l1_steps(inputs, likelihood, use, values, l1_ratio, tolerance, start)
        if l1_ratio
        else _ridge_steps(inputs, likelihood, use, values, tolerance)
    )
    for penalty, (outputs, weights) in zip(values.tolist(), steps, strict=True):
        yield Step(penalty, outputs, partial(_of_given_columns, inputs, likelihood, weights))


def _of_given_columns(
    inputs: Standardised, likelihood: Likelihood, weights: Callable[[], Weights]
) -> tuple[Array, Array]:
    """Weights ``[F, p, K]`` and intercepts ``[F, K]`` of the columns as they were given."""
    found = weights()
    w, b = (found.w / inputs.spread[:, None, None]).transpose(2, 0, 1), found.b.T
    return w, b - np.einsum("fpk,p->fk", w, inputs.shift) if likelihood.intercept else b.copy()


def optimality_residual(
    x: ArrayLike,
    likelihood: Likelihood,
    fit: LinearFit,
    penalty: float,
    *,
    l1_ratio: float,
    factors: ArrayLike | None = None,
    use: ArrayLike | None = None,
) -> float:
    """Largest violation of the optimality conditions of a fit, over weights and intercepts."""
    x, factors, use = _checked(x, factors, use, likelihood)
    weights = Weights(fit.weights[:, :, None], fit.intercept[:, None])
    l1, ridge = penalty * l1_ratio * factors[:, None], penalty * (1 - l1_ratio) * factors[:, None]
    return float(kkt_residual(x, likelihood, use[:, :1], l1, ridge, weights)[0])


def _checked(x, factors, use, likelihood: Likelihood) -> tuple[Array, Array, Array]:
    x, factors = _checked_inputs(x, factors)
    return x, factors, _checked_use(len(x), use, likelihood)


def _checked_inputs(x: ArrayLike, factors: ArrayLike | None) -> tuple[Array, Array]:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"inputs are [cases, columns] without gaps; shape {x.shape}")
    factors = np.ones(x.shape[1]) if factors is None else np.asarray(factors, np.float64)
    if factors.shape != (x.shape[1],) or not (factors > 0).all():
        raise ValueError(f"{x.shape[1]} factors above 0 are needed")
    return x, factors


def _checked_use(rows: int, use: ArrayLike | None, likelihood: Likelihood) -> Array:
    use = np.ones((rows, 1)) if use is None else np.asarray(use, np.float64)
    use = use[:, None] if use.ndim == 1 else use
    if len(use) != rows or not np.isin(use, (0, 1)).all():
        raise ValueError(f"use has {rows} rows of 0 and 1")
    if not likelihood.counts(use).all():
        raise ValueError("a set of cases has no label (no event under Cox's model) to fit a model on")
    return use


#: Outputs ``[n, K, F]`` of the models of a penalty, and their weights for the standardised columns.
_Solved = tuple[Array, Callable[[], Weights]]


def _ridge_steps(inputs: Standardised, likelihood, use, penalties, tolerance) -> Iterator[_Solved]:
    """All penalties and sets at once, in the space of the cases."""
    count, sets = len(penalties), use.shape[1]
    space = inputs.space
    each = np.repeat(penalties, sets)
    rank, outputs = space.z.shape[1], likelihood.outputs
    solved = minimise(
        space.z,
        likelihood,
        np.tile(use, count),
        np.broadcast_to(each, (rank, len(each))),
        Weights.zeros(rank, outputs, len(each)),
        tolerance=tolerance,
    )
    eta = outputs_of(space.z, solved)
    for i in range(count):
        models = np.arange(i * sets, (i + 1) * sets)
        yield eta[..., models], partial(_from_space, space, solved.take(models))


def _from_space(space: RowSpace, part: Weights) -> Weights:
    return Weights(space.weights(part.w), part.b)


def _l1_steps(
    inputs: Standardised, likelihood, use, penalties, l1_ratio, tolerance, start: LinearFit | None
) -> Iterator[_Solved]:
    """One penalty after the other, each from the solution of the one before."""
    x, sets = inputs.rows, use.shape[1]
    l1, l2 = l1_ratio * inputs.factors / inputs.spread, (1 - l1_ratio) * inputs.factors / inputs.spread**2
    if start is None:
        now = Weights(
            np.zeros((x.shape[1], likelihood.outputs, sets)), null_model(likelihood, use, tolerance)
        )
    else:
        w, b = start.weights * inputs.spread[:, None], start.intercept + inputs.shift @ start.weights
        now = Weights(np.repeat(w[:, :, None], sets, axis=2), np.repeat(b[:, None], sets, axis=1))
        now.b = now.b if likelihood.intercept else np.zeros_like(now.b)
    slope = backward(x, likelihood.at(outputs_of(x, now), use).gradient)
    # A path begins where all weights are zero; a start given is taken to be the model of the first penalty.
    previous = penalties[0] if start else (np.abs(slope).max(axis=(1, 2)) / l1).max(initial=0.0)
    for penalty in penalties:
        strong = np.abs(slope).max(axis=(1, 2)) >= l1 * (2 * penalty - previous)
        looked_at = strong | (now.w != 0).any(axis=(1, 2))
        while True:
            at = np.flatnonzero(looked_at)
            l1_part, l2_part = (np.repeat(penalty * f[at, None], sets, axis=1) for f in (l1, l2))
            solved = minimise_l1(
                x[:, at], likelihood, use, l1_part, l2_part, now.rows(at), tolerance=tolerance
            )
            now.w[at], now.b = solved.w, solved.b
            eta = outputs_of(x[:, at], solved)
            slope = backward(x, likelihood.at(eta, use).gradient)
            beyond = np.abs(slope).max(axis=(1, 2)) - penalty * l1 > tolerance
            if not (beyond & ~looked_at).any():
                break
            looked_at |= beyond
        previous = penalty
        kept = Weights(now.w.copy(), now.b.copy())
        yield eta, lambda kept=kept: kept  # type: ignore[misc]


def null_model(likelihood: Likelihood, use: Array, tolerance: float = 1e-9) -> Array:
    """``[K, C]`` intercepts of models without any column."""
    models = use.shape[1]
    nothing = np.zeros((len(use), 0))
    start = Weights.zeros(0, likelihood.outputs, models)
    return minimise(nothing, likelihood, use, np.zeros((0, models)), start, tolerance=tolerance).b
