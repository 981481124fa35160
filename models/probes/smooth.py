"""Newton's method with conjugate gradients for linear models whose penalty is smooth, many models at once.

Minimises, for each of C models,

.. math:: L(b + X w) + \\tfrac12 \\sum_j r_j w_j^2 + \\sum_j a_j w_j

over the weights of a mask. It is the whole solver of ridge penalties, in the coordinates of
:class:`RowSpace` where there are more columns than cases, and the last steps of a penalty with L1, when signs and
support are known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.models.probes.likelihoods import Array, Derivatives, Index, Likelihood

#: Newton steps at most. Convergence is quadratic; more are needed only where a loss has no minimum.
MAX_STEPS = 100
#: Conjugate gradient steps inside a Newton step.
MAX_CG = 250
#: Step halvings before a model counts as converged to rounding.
MAX_HALVINGS = 30


@dataclass
class Weights:
    """Weights ``[p, K, C]`` and intercepts ``[K, C]`` of C models."""

    w: Array
    b: Array

    @classmethod
    def zeros(cls, columns: int, outputs: int, models: int) -> Weights:
        """All zero."""
        return cls(np.zeros((columns, outputs, models)), np.zeros((outputs, models)))

    def rows(self, rows: Index) -> Weights:
        """Weights of some of the columns."""
        return Weights(self.w[rows], self.b)

    def take(self, models: Index) -> Weights:
        """Some of the models."""
        return Weights(self.w[..., models], self.b[..., models])


def outputs_of(x: Array, weights: Weights) -> Array:
    """``[n, K, C]`` outputs b + X w."""
    p, k, c = weights.w.shape
    return (x @ weights.w.reshape(p, k * c)).reshape(len(x), k, c) + weights.b


def backward(x: Array, gradient: Array) -> Array:
    """``[p, K, C]`` derivatives with respect to weights from those with respect to outputs ``[n, K, C]``."""
    n, k, c = gradient.shape
    return (x.T @ gradient.reshape(n, k * c)).reshape(x.shape[1], k, c)


def minimise(
    x: Array,
    likelihood: Likelihood,
    use: Array,
    ridge: Array,
    start: Weights,
    *,
    linear: Array | None = None,
    mask: Array | None = None,
    tolerance: float = 1e-9,
) -> Weights:
    """Minimise until no derivative is larger than ``tolerance``, or rounding leaves nothing to gain.

    Parameters
    ----------
    x
        ``[n, p]`` inputs.
    likelihood, use
        The loss, and which cases each model is fitted on.
    ridge
        ``[p, C]`` r.
    start
        Where to begin.
    linear
        ``[p, K, C]`` a, zero if not given.
    mask
        ``[p, K, C]`` bool, the weights that move; all if not given.
    tolerance
        Largest derivative of the objective at the end.
    """
    models = use.shape[1]
    result = Weights(start.w.copy(), start.b.copy())
    active = np.arange(models)
    square = (x * x).sum(axis=0)[:, None, None]
    for _ in range(MAX_STEPS):
        here, use_c, ridge_c = result.take(active), use[:, active], ridge[:, None, active]
        linear_c = 0.0 if linear is None else linear[..., active]
        mask_c = None if mask is None else mask[..., active]
        eta = outputs_of(x, here)
        loss = likelihood.at(eta, use_c)
        slope = _slope(x, likelihood, loss, here, ridge_c, linear_c, mask_c)
        size = _largest(slope)
        moving = size > tolerance
        if not moving.any():
            break
        if not moving.all():
            active = active[moving]
            continue
        step = _newton_step(x, likelihood, loss, slope, ridge_c, square, mask_c)
        length = _line_search(x, likelihood, use_c, here, step, slope, ridge_c, linear_c, eta, loss)
        result.w[..., active] += length * step.w
        result.b[..., active] += length * step.b
        active = active[length > 0]
        if not len(active):
            break
    return result


def _slope(x, likelihood: Likelihood, loss: Derivatives, here: Weights, ridge, linear, mask) -> Weights:
    w = backward(x, loss.gradient) + ridge * here.w + linear
    b = loss.gradient.sum(axis=0) if likelihood.intercept else np.zeros_like(here.b)
    return Weights(w if mask is None else w * mask, b)


def _largest(slope: Weights) -> Array:
    """``[C]`` largest derivative of each model."""
    return np.maximum(np.abs(slope.w).max(axis=(0, 1), initial=0), np.abs(slope.b).max(axis=0))


def _dot(a: Weights, b: Weights) -> Array:
    return (a.w * b.w).sum(axis=(0, 1)) + (a.b * b.b).sum(axis=0)


def _newton_step(x, likelihood, loss: Derivatives, slope: Weights, ridge, square, mask) -> Weights:
    """Conjugate gradients on H d = -g, preconditioned by an estimate of the diagonal; each model stops on its own."""
    mean = loss.diagonal.sum(axis=0) / len(x)  # [K, C]
    scale_w = 1 / np.maximum(square * mean + ridge, 1e-300)
    scale_b = 1 / np.maximum(mean * len(x), 1e-300) if likelihood.intercept else np.zeros_like(slope.b)
    step = Weights(np.zeros_like(slope.w), np.zeros_like(slope.b))
    residual = Weights(-slope.w, -slope.b)
    scaled = Weights(scale_w * residual.w, scale_b * residual.b)
    direction = Weights(scaled.w.copy(), scaled.b.copy())
    rho = _dot(residual, scaled)
    first = np.maximum(rho, 1e-300)
    # Superlinear: the relative accuracy of a step grows as the derivative falls.
    goal = np.minimum(0.01, _largest(slope)) ** 2
    for _ in range(MAX_CG):
        running = rho > goal * first
        if not running.any():
            break
        bent = loss.curvature(outputs_of(x, direction))
        product = Weights(backward(x, bent) + ridge * direction.w, np.zeros_like(direction.b))
        if likelihood.intercept:
            product.b = bent.sum(axis=0)
        if mask is not None:
            product.w = product.w * mask
        bend = _dot(direction, product)
        running &= bend > 1e-300
        alpha = np.where(running, rho / np.where(bend > 1e-300, bend, 1.0), 0.0)
        step.w += alpha * direction.w
        step.b += alpha * direction.b
        residual.w -= alpha * product.w
        residual.b -= alpha * product.b
        scaled = Weights(scale_w * residual.w, scale_b * residual.b)
        new = _dot(residual, scaled)
        beta = np.where(running, new / np.maximum(rho, 1e-300), 0.0)
        direction.w = np.where(running, scaled.w + beta * direction.w, 0.0)
        direction.b = np.where(running, scaled.b + beta * direction.b, 0.0)
        rho = np.where(running, new, 0.0)
    return step


def _line_search(
    x, likelihood, use, here: Weights, step: Weights, slope: Weights, ridge, linear, eta, loss
) -> Array:
    """``[C]`` step lengths that lower the objective; 0 where none does."""
    change = outputs_of(x, step)
    bend = (ridge * step.w * step.w).sum(axis=(0, 1))
    pull = (ridge * here.w * step.w + linear * step.w).sum(axis=(0, 1))
    descent = _dot(slope, step)
    slack = 1e-14 * np.maximum(np.abs(loss.value), 1e-3)
    length = np.where(descent < 0, 1.0, 0.0)
    for _ in range(MAX_HALVINGS):
        value = likelihood.at(eta + length * change, use).value
        gain = value - loss.value + length * pull + 0.5 * length**2 * bend
        short = (gain > 1e-4 * length * descent + slack) & (length > 0)
        if not short.any():
            return length
        length = np.where(short, 0.5 * length, length)
    return np.where(short, 0.0, length)


class RowSpace:
    """Coordinates in which a ridge penalty over p columns needs only as many numbers as there are cases.

    With factors f and :math:`\\tilde X = X f^{-1/2} = U S V^T`, the fit is a ridge with factor 1 on :math:`Z = U S`,
    exactly, because a minimiser lies in the span of the cases. Directions whose singular value is below 1e-5 of the
    largest are left out: a penalty fixes their weights to zero but for rounding.

    Parameters
    ----------
    x
        ``[n, p]``.
    factors
        ``[p]`` above 0.
    """

    def __init__(self, x: Array, factors: Array) -> None:
        self._root = np.sqrt(factors)
        scaled = x / self._root
        if x.shape[0] <= x.shape[1]:
            values, left = np.linalg.eigh(scaled @ scaled.T)
            kept = values > 1e-10 * max(values[-1], 1e-300)
            singular = np.sqrt(values[kept])
            self.z = left[:, kept] * singular
            self._back = scaled.T @ (left[:, kept] / singular)
        else:
            values, right = np.linalg.eigh(scaled.T @ scaled)
            kept = values > 1e-14 * max(values[-1], 1e-300)
            self._back = right[:, kept]
            self.z = scaled @ self._back

    def weights(self, theta: Array) -> Array:
        """``[p, K, C]`` weights from ``[r, K, C]`` coordinates."""
        r, k, c = theta.shape
        flat = self._back @ theta.reshape(r, k * c)
        return (flat / self._root[:, None]).reshape(-1, k, c)
