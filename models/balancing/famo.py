"""Fast adaptive multitask optimisation, FAMO (Liu et al., NeurIPS 2023, arXiv 2306.03792, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import FamoParams
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.balancing.weighting import LearnedVector, Weighting, positive
from equipoise.models.batch import TaskHead


class Famo(Weighting):
    r"""All losses shall fall at the same rate, measured by losses only. With lower bound b and logits :math:`\xi`,

    .. math:: z = \mathrm{softmax}(\xi), \qquad
              w_k = c \, \frac{z_k}{L_k - b}, \qquad c = \Big(\sum_k \frac{z_k}{L_k - b}\Big)^{-1}

    is a step of :math:`\sum_k z_k \log(L_k - b)` whose weights sum to 1. After it, the same batch tells how much
    each logarithm fell, :math:`\delta_k = \log(L_k - b) - \log(L_k' - b)`, and Adam with decay takes a step down

    .. math:: \nabla_\xi \; z^\top \delta = z \circ (\delta - z^\top \delta)

    in which tasks that fell faster than the rest lose weight. Absent tasks are left out of every sum.
    """

    def __init__(self, params: FamoParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.logits = LearnedVector([0.0] * len(heads), lr=params.lr, weight_decay=params.weight_decay)
        self.bound = params.lower_bound

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """c z / (L - b), of sum 1 over present tasks."""
        here = context.present
        shares = self._shares(here)[here] / self._above(losses[here])
        weights = torch.zeros_like(losses, dtype=torch.float64)
        weights[here] = shares / shares.sum()
        return weights

    def learn(self, losses: Tensor, context: StepContext, feedback: Feedback) -> None:
        """A step of the logits, by how far each loss fell."""
        assert feedback.losses_after is not None
        here, after = context.present, feedback.losses_after
        z = self._shares(here)
        fall = torch.zeros_like(z)
        fall[here] = torch.log(self._above(losses[here])) - torch.log(self._above(after[here]))
        self.logits.step(z * (fall - z @ fall), here)

    def _shares(self, here: Tensor) -> Tensor:
        """``[T]`` z, 0 for absent tasks."""
        return torch.softmax(self.logits.values.masked_fill(~here, -torch.inf), dim=0)

    def _above(self, losses: Tensor) -> Tensor:
        return positive(losses.double() - self.bound, "famo (above lower_bound)")

    def state_dict(self) -> dict[str, Any]:
        """Logits and their optimiser."""
        return {"logits": self.logits.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.logits.load_state_dict(state["logits"])
