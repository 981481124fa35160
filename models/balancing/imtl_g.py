"""IMTL-G (Liu et al., ICLR 2021, equation 5)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import PRECISION, UnitGradients

#: Σα below this share of Σ|α| is cancellation, not a scale.
CANCELLED = 0.1


class ImtlG(Aggregator):
    r"""The direction :math:`d = \sum_k \alpha_k g_k` that is equally long along every gradient,

    .. math:: d \cdot g_k / \|g_k\| = \text{const}, \quad \sum_k \alpha_k = 1
              \qquad\Longrightarrow\qquad \alpha \propto n^{-1} \circ C^{+} 1

    with cosines C and norms n.

    Notes
    -----
    torchjd solves :math:`\alpha \propto G^{+} n`: the same where G is regular. Among linearly dependent gradients
    both keep the direction, but the pseudo-inverse of C treats parallel gradients equally, whatever their norms.
    α can have negative entries with three tasks or more. If these cancel (:math:`\sum\alpha` below a tenth of
    :math:`\sum|\alpha|`, or negative), dividing by the sum would lengthen the direction without bound or turn it
    uphill for **all** tasks, as published; :math:`\sum|\alpha| = 1` is then used. Opposite gradients give 0.
    """

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]`` α."""
        unit = UnitGradients.of(gram)
        if not len(unit):
            return unit.expand(np.zeros(0))
        values, vectors = np.linalg.eigh(unit.cosines)
        along = np.where(values > len(unit) * PRECISION, vectors.sum(0) / values, 0.0)
        alpha = (vectors @ along) / unit.norms * unit.norms.min()
        total, size = alpha.sum(), np.abs(alpha).sum()
        if size <= PRECISION:
            return unit.expand(np.zeros(len(unit)))
        return unit.expand(alpha / (total if total > CANCELLED * size else size))
