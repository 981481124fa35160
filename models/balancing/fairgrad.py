"""FairGrad (Ban and Ji, ICML 2024, arXiv 2402.15638, equation 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from equipoise.models.balancing.entries import FairGradParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import UnitGradients, equilibrium
from equipoise.models.batch import TaskHead


class FairGrad(Aggregator):
    r"""α-fair gains :math:`g_k \cdot d` among tasks: :math:`d = J^\top a` with

    .. math:: G a = a^{-1/\alpha} .

    α = 1 is proportional fairness (Nash-MTL without its clipping); larger α comes closer to max-min.

    Notes
    -----
    With y = n ∘ a this is :math:`C y = n^{1/\alpha - 1} \circ y^{-1/\alpha}`, the stationary point of a strictly convex
    function, found by Newton's method; torchjd calls SciPy's least squares (18 ms at T = 6). ‖d‖ does not
    follow ‖g‖: on orthogonal gradients it is :math:`\|g\|^{(1-\alpha)/(1+\alpha)} \sqrt T`.
    """

    def __init__(self, params: FairGradParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.alpha = params.alpha

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]`` a."""
        unit = UnitGradients.of(gram)
        if not len(unit):
            return unit.expand(np.zeros(0))
        power = 1 / self.alpha
        y = equilibrium(unit.cosines, unit.norms ** (power - 1), power)
        return unit.expand(y / unit.norms)
