"""UPGrad (Quinton and Rey, 2024, arXiv 2406.16232, section 3)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import UnitGradients, nonnegative_qp


class UpGrad(Aggregator):
    r"""The mean of all gradients after each was projected onto the cone of directions without conflict,
    :math:`\{d : Jd \ge 0\}`. The projection of :math:`J^\top u` is :math:`J^\top v` with

    .. math:: v = \arg\min_{v \ge u} v^\top G v, \qquad u = e_i, \qquad d = \tfrac1T \sum_i J^\top v_i .

    Sums of vectors of a convex cone stay in it: no conflict with any task. Without conflicts d is the mean.

    Notes
    -----
    Own code: torchjd needs quadprog and adds 1e-4 to the diagonal of G/tr G, which leaves small conflicts. With
    z = v − u ≥ 0 the problem is ½ zᵀGz + (Gu)ᵀz, solved once per gradient in conflict.
    """

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]``, the mean of all v."""
        unit = UnitGradients.of(gram)
        C, norms = unit.cosines, unit.norms
        total = np.ones(len(unit))
        for i in np.flatnonzero((C < 0).any(axis=0)):
            total += nonnegative_qp(C, -C[:, i]) * norms[i] / norms
        return unit.expand(total / unit.size)
