"""CAGrad (Liu et al., NeurIPS 2021, arXiv 2110.14048, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from equipoise.models.balancing.entries import CaGradParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import Array, UnitGradients, dual_of_many
from equipoise.models.batch import TaskHead

#: Square of ‖g_w‖ over that of the largest gradient below which 0 counts as a point of the convex hull.
DEGENERATE = 1e-8


class CaGrad(Aggregator):
    r"""The direction near the mean gradient :math:`g_0` by which the worst-off task gains most:
    :math:`\max_d \min_k g_k \cdot d` for :math:`\|d - g_0\| \le s = c \|g_0\|`. By duality, over simplex weights w
    with :math:`g_w = \sum_k w_k g_k`,

    .. math:: w = \arg\min \; g_w \cdot g_0 + s \|g_w\|, \qquad
              d = g_0 + s \frac{g_w}{\|g_w\|}, \qquad
              \text{direction} = \{1, \; \frac{T}{1 + c^2}, \; \frac{T}{1 + c}\}_\text{rescale} \; d .

    rescale 0 is the paper's and torchjd's; 1, the default, is what the Auto-Lambda lineage and arXiv 2403.03891
    do with c = 0.4, a factor T/(1+c²) on torchjd's (1.7241 at T = 2); 2 is the third choice of the authors' code.

    Notes
    -----
    T, :math:`g_0` and the radius are those of the tasks that are present with a gradient; the balancer hands over no
    others, and a single one keeps its plain gradient.

    Own code: torchjd needs cvxpy, and returns 0 for small gradients. Two tasks have a closed form. For more,
    optimality says that x = s w/‖g_w‖ ≥ 0 fulfils :math:`G x + G 1/T \ge \mu 1`, with equality where x > 0: for a
    given μ a non-negative quadratic programme, whose ‖g_x‖ grows with μ; where the set of positive x is known,
    ‖g_x‖ = s is a quadratic equation in μ. A few of these solve it exactly. If 0 is in the convex hull, w is not
    unique; the formula here then becomes the smallest change of g_0 after which no task loses.
    """

    def __init__(self, params: CaGradParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.c = params.c
        self.rescale = params.rescale

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]``, rescaled."""
        unit = UnitGradients.of(gram)
        m = len(unit)
        if not m:
            return unit.expand(np.zeros(0))
        norms = unit.norms / unit.norms.max()
        b = norms * (unit.cosines @ norms) / m
        s = self.c * math.sqrt(max(b.mean(), 0.0))
        if s == 0:
            x = np.zeros(m)
        elif m == 2:
            x = _dual_of_two(unit.cosines, norms, b, s)
        else:
            x = dual_of_many(unit.cosines, norms, b, s)
        factor = (1.0, m / (1 + self.c**2), m / (1 + self.c))[self.rescale]
        return unit.expand(factor * (1 / m + x))


def _dual_of_two(C: Array, norms: Array, b: Array, s: float) -> Array:
    r"""x for two tasks. With :math:`g_w = g_2 + w (g_1 - g_2)`, the derivative
    :math:`\beta + s A v / \sqrt{A v^2 + Q}` vanishes at :math:`v^2 = \beta^2 Q / (A (s^2 A - \beta^2))`, where v is
    the distance of w from that of the shortest g_w, whose square is Q."""
    one, two, beta = float(norms[0]), float(norms[1]), float(b[0] - b[1])
    first, second, cross = one * one, two * two, float(C[0, 1]) * one * two
    A = max(first + second - 2 * cross, 0.0)
    if A <= 0:
        w = 0.5
    else:
        shortest = (second - cross) / A
        Q = max(second - A * shortest**2, 0.0)
        margin = s * s * A - beta * beta
        v = math.inf if margin <= 0 else math.sqrt(beta * beta * Q / (A * margin))
        w = min(max(shortest - math.copysign(v, beta) if beta else shortest, 0.0), 1.0)
    square = w * w * first + (1 - w) ** 2 * second + 2 * w * (1 - w) * cross
    if square < DEGENERATE:
        return dual_of_many(C, norms, b, s)
    return np.array([w, 1 - w]) * s / math.sqrt(square)
