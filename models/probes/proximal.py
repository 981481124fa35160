"""Penalties with L1: accelerated proximal gradient, then Newton steps on the support it found.

Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems", SIAM J. Imaging
Sci. 2(1), 2009 (FISTA with backtracking), with the gradient restart of O'Donoghue and Candès, "Adaptive restart for
accelerated gradient schemes", Found. Comput. Math. 15, 2015 (equation 12). FISTA finds signs and support quickly but
the last digits slowly: between blocks of it, :func:`equipoise.models.probes.smooth.minimise` solves the smooth problem
on the support, and its result is kept for the models whose objective it lowers.
"""

from __future__ import annotations

import numpy as np

from equipoise.models.probes.likelihoods import Array, Likelihood
from equipoise.models.probes.smooth import Weights, backward, minimise, outputs_of

#: FISTA iterations between attempts with Newton's method, and attempts at most.
BLOCK, BLOCKS = 30, 60
#: Parts of a step on the support that are tried.
SHARES = (1.0, 0.5, 0.2, 0.05)


def soft_threshold(x: Array, by: Array) -> Array:
    """Towards zero by ``by``, and zero where ``|x| <= by``."""
    return np.sign(x) * np.maximum(np.abs(x) - by, 0.0)


def kkt_residual(
    x: Array, likelihood: Likelihood, use: Array, l1: Array, ridge: Array, weights: Weights
) -> Array:
    """``[C]`` largest violation of the optimality conditions of each model.

    For :math:`L + \\sum_j l_j |w_j| + \\tfrac12 \\sum_j r_j w_j^2` with derivative g of the smooth part:
    :math:`|g_j + l_j \\operatorname{sign} w_j|` where a weight is not zero, :math:`\\max(|g_j| - l_j, 0)` where it is,
    and :math:`|g|` for intercepts. Parameters as in :func:`minimise_l1`.
    """
    gradient = likelihood.at(outputs_of(x, weights), use).gradient
    slope = backward(x, gradient) + ridge[:, None] * weights.w
    residual = violations(slope, weights.w, l1[:, None]).max(axis=(0, 1), initial=0.0)
    if likelihood.intercept:
        residual = np.maximum(residual, np.abs(gradient.sum(axis=0)).max(axis=0))
    return residual


def violations(slope: Array, w: Array, l1: Array) -> Array:
    """Violation of the optimality condition of every weight, given the derivative of the smooth part."""
    return np.where(w != 0, np.abs(slope + l1 * np.sign(w)), np.maximum(np.abs(slope) - l1, 0.0))


def minimise_l1(
    x: Array,
    likelihood: Likelihood,
    use: Array,
    l1: Array,
    ridge: Array,
    start: Weights,
    *,
    tolerance: float,
) -> Weights:
    """Minimise the loss plus :math:`\\sum_j l_j |w_j| + \\tfrac12 \\sum_j r_j w_j^2` of each of C models.

    Parameters
    ----------
    x
        ``[n, p]`` inputs; of similar scale, or convergence is slow.
    likelihood, use
        The loss, and which cases each model is fitted on.
    l1, ridge
        ``[p, C]`` each.
    start
        Where to begin.
    tolerance
        Largest :func:`kkt_residual` at the end. If :data:`BLOCKS` do not reach it, the best weights so far are
        returned.
    """
    weights = Weights(start.w.copy(), start.b.copy())
    lipschitz: Array | None = None
    for _ in range(BLOCKS):
        left = np.flatnonzero(kkt_residual(x, likelihood, use, l1, ridge, weights) > tolerance)
        if not len(left):
            break
        part = use[:, left], l1[:, left], ridge[:, left]
        if lipschitz is None or len(lipschitz) != len(left):
            lipschitz = _largest_curvature(x, likelihood, part[0], part[2], weights.take(left))
        moved, lipschitz = _fista(x, likelihood, *part, weights.take(left), lipschitz, tolerance)
        moved = _on_support(x, likelihood, *part, moved, tolerance)
        weights.w[..., left], weights.b[..., left] = moved.w, moved.b
    return weights


def objective(
    x: Array, likelihood: Likelihood, use: Array, l1: Array, ridge: Array, weights: Weights
) -> Array:
    """``[C]`` loss and penalty of each model."""
    loss = likelihood.at(outputs_of(x, weights), use).value
    return loss + _penalty(weights.w, l1, ridge)


def _penalty(w: Array, l1: Array, ridge: Array) -> Array:
    return (l1[:, None] * np.abs(w) + 0.5 * ridge[:, None] * w * w).sum(axis=(0, 1))


def _largest_curvature(x, likelihood, use, ridge, at: Weights) -> Array:
    """``[C]`` largest eigenvalue of the second derivative, by power iteration."""
    loss = likelihood.at(outputs_of(x, at), use)
    signs = np.where(np.arange(at.w.shape[0]) % 2, 1.0, 0.5)[:, None, None]
    direction = Weights(np.broadcast_to(signs, at.w.shape).copy(), np.ones_like(at.b))
    value = np.ones(use.shape[1])
    for _ in range(12):
        norm = np.sqrt((direction.w**2).sum(axis=(0, 1)) + (direction.b**2).sum(axis=0))
        direction.w, direction.b = direction.w / norm, direction.b / norm
        bent = loss.curvature(outputs_of(x, direction))
        w = backward(x, bent) + ridge[:, None] * direction.w
        b = bent.sum(axis=0) if likelihood.intercept else np.zeros_like(direction.b)
        value = np.sqrt((w**2).sum(axis=(0, 1)) + (b**2).sum(axis=0))
        direction = Weights(w + 1e-300, b)
    return np.maximum(value, 1e-12)


def _fista(x, likelihood, use, l1, ridge, start: Weights, lipschitz, tolerance) -> tuple[Weights, Array]:
    """At most one block of iterations; also the Lipschitz constants, which backtracking may have raised."""
    lipschitz = lipschitz.copy()
    now, before = start, start
    eta, eta_before = outputs_of(x, now), None
    momentum = np.ones(use.shape[1])
    for _ in range(BLOCK):
        larger = 0.5 * (1 + np.sqrt(1 + 4 * momentum**2))
        beta = (momentum - 1) / larger
        y = Weights(now.w + beta * (now.w - before.w), now.b + beta * (now.b - before.b))
        eta_y = eta if eta_before is None else eta + beta * (eta - eta_before)
        loss = likelihood.at(eta_y, use)
        slope = Weights(backward(x, loss.gradient) + ridge[:, None] * y.w, np.zeros_like(y.b))
        if likelihood.intercept:
            slope.b = loss.gradient.sum(axis=0)
        smooth = loss.value + 0.5 * (ridge[:, None] * y.w**2).sum(axis=(0, 1))
        while True:
            step = Weights(
                soft_threshold(y.w - slope.w / lipschitz, l1[:, None] / lipschitz) - y.w, -slope.b / lipschitz
            )
            new = Weights(y.w + step.w, y.b + step.b)
            eta_new = outputs_of(x, new)
            value = likelihood.at(eta_new, use).value + 0.5 * (ridge[:, None] * new.w**2).sum(axis=(0, 1))
            square = (step.w**2).sum(axis=(0, 1)) + (step.b**2).sum(axis=0)
            linear = (slope.w * step.w).sum(axis=(0, 1)) + (slope.b * step.b).sum(axis=0)
            bound = smooth + linear + 0.5 * lipschitz * square
            wrong = value > bound + 1e-13 * np.maximum(np.abs(smooth), 1e-3)
            if not wrong.any():
                break
            lipschitz = np.where(wrong, 2 * lipschitz, lipschitz)
        uphill = -(step.w * (new.w - now.w)).sum(axis=(0, 1)) - (step.b * (new.b - now.b)).sum(axis=0) > 0
        momentum = np.where(uphill, 1.0, larger)
        before, now = now, new
        eta_before, eta = eta, eta_new
        steps = np.abs(step.w).max(axis=(0, 1), initial=0.0)  # no column may be left, only the intercept
        largest = lipschitz * np.maximum(steps, np.abs(step.b).max(axis=0))
        if (largest < 0.3 * tolerance).all():
            break
    return now, lipschitz


def _on_support(x, likelihood, use, l1, ridge, weights: Weights, tolerance) -> Weights:
    """The smooth problem on the support, with the signs held; kept where it lowers the objective."""
    rows = np.flatnonzero((weights.w != 0).any(axis=(1, 2)))
    small, part = x[:, rows], Weights(weights.w[rows], weights.b)
    sign = np.sign(part.w)
    solved = minimise(
        small,
        likelihood,
        use,
        ridge[rows],
        part,
        linear=l1[rows, None] * sign,
        mask=sign != 0,
        tolerance=0.1 * tolerance,
    )
    result = Weights(weights.w.copy(), weights.b.copy())
    lowest = objective(small, likelihood, use, l1[rows], ridge[rows], part)
    for share in SHARES:  # a whole step where signs hold, a part of it where some would change
        w = part.w + share * (solved.w - part.w)
        tried = Weights(np.where(sign * w > 0, w, 0.0), part.b + share * (solved.b - part.b))
        value = objective(small, likelihood, use, l1[rows], ridge[rows], tried)
        better = value <= lowest
        lowest = np.where(better, value, lowest)
        result.w[rows] = np.where(better, tried.w, result.w[rows])
        result.b = np.where(better, tried.b, result.b)
    return result
