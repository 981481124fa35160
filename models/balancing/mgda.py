"""MGDA (Désidéri 2012; Sener and Koltun, NeurIPS 2018, arXiv 1810.04650)."""

from __future__ import annotations

from torch import Tensor

from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import UnitGradients, min_norm


class Mgda(Aggregator):
    r"""The shortest vector of the convex hull of the gradients: :math:`d = J^\top w` with

    .. math:: w = \arg\min_{w \ge 0, \, 1^\top w = 1} \| J^\top w \|^2 .

    It makes no conflict, :math:`g_k \cdot d \ge \|d\|^2`, and is 0 where no direction helps all tasks.

    Notes
    -----
    Own code: torchjd's Frank-Wolfe iterations stop at a precision of 1e-3 and cost 33 ms at T = 6.
    """

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]`` w."""
        unit = UnitGradients.of(gram)
        return unit.expand(min_norm(unit))
