"""ConicGrad (Hassanpour et al., 2025, arXiv 2502.00217)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from equipoise.models.balancing.entries import ConicGradParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import UnitGradients, dual_of_many, min_norm, regularised
from equipoise.models.batch import TaskHead

#: Added to squares of gradients orthogonal to the mean, relative to the largest gradient's.
RIDGE = 1e-10


class ConicGrad(Aggregator):
    r"""The direction in a cone around the mean gradient :math:`g_0` by which the worst-off task gains most:

    .. math:: \max_d \min_k g_k \cdot d \quad \text{for} \quad g_0 \cdot d \ge c \, \|g_0\| \|d\|, \; \|d\| = \|g_0\| .

    Unlike CAGrad's ball it bounds the angle alone. Without the cone, the solution is the direction of the shortest
    vector of the convex hull (MGDA). If that is in the cone, it is the solution. Otherwise d lies on the cone,
    :math:`d = \|g_0\| (c \, u + \sqrt{1 - c^2} \, v)` with u along :math:`g_0` and v orthogonal to it, and v is the
    CAGrad problem in what is orthogonal to u, over simplex weights w:

    .. math:: w = \arg\min \; c \, g_w \cdot u + \sqrt{1 - c^2} \, \|P g_w\|, \quad v = P g_w / \|P g_w\|,
              \quad P = 1 - u u^\top .

    Notes
    -----
    The paper takes one step of gradient descent on w in every training step, with a closed form of d for given w; here
    the problem is solved exactly in each, as for CAGrad, and there is no learning rate of w. The formulation is from
    the abstract and the text of the paper; its code was not public, so that the default of c is ours.
    """

    def __init__(self, params: ConicGradParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.c = params.c

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]``."""
        unit = UnitGradients.of(gram)
        m = len(unit)
        if m < 2:
            return unit.expand(np.ones(m))
        scale = unit.norms.max()
        n = unit.norms / scale
        G = n[:, None] * unit.cosines * n
        b = G.mean(axis=0)
        length = math.sqrt(max(float(b.mean()), 0.0))
        if length < math.sqrt(RIDGE):  # the tasks cancel: no direction is in front of their mean
            return unit.expand(np.full(m, 1 / m))
        w = min_norm(unit)
        shortest = math.sqrt(max(float(w @ G @ w), 0.0))
        if shortest > math.sqrt(RIDGE) and w @ b >= self.c * length * shortest:
            return unit.expand(length / shortest * w)
        a = b / length
        across = G - np.outer(a, a)
        norms = np.sqrt(np.maximum(across.diagonal(), 0) + RIDGE)
        cosines = regularised((across + RIDGE * np.eye(m)) / norms / norms[:, None])
        s = math.sqrt(1 - self.c**2)
        x = dual_of_many(cosines, norms, self.c * a, s)
        aside = math.sqrt(max(float(x @ across @ x), 0.0))
        x *= s / aside if aside > math.sqrt(RIDGE) * s else 0.0
        return unit.expand(self.c / m + length * x - (x @ a) / m)
