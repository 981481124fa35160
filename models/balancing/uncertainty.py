"""Uncertainty weighting (Kendall, Gal and Cipolla, CVPR 2018, equation 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import UncertaintyParams
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.balancing.weighting import LearnedVector, Weighting, learning_rate
from equipoise.models.batch import TaskHead


class Uncertainty(Weighting):
    r"""Every task has a learned log variance :math:`s_k`; model and variances minimise

    .. math:: \sum_k \tfrac12 e^{-s_k} L_k + \tfrac12 s_k

    so that :math:`w_k = \tfrac12 e^{-s_k}` and :math:`\partial/\partial s_k = \tfrac12 (1 - e^{-s_k} L_k)`: the
    variance follows the loss, :math:`s_k \to \log L_k`.

    Notes
    -----
    The factor ½ stands before every kind of loss, as in the published line of code; the paper derives it for
    squared errors and has 1 for cross-entropies. With the usual start of -0.7 all weights begin at 1.007. The
    variances have an optimiser of their own, without weight decay, which would be a prior on them.
    """

    def __init__(self, params: UncertaintyParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.lr, self.reach = params.lr, params.reach
        self.log_variance = LearnedVector([params.init] * len(heads), lr=params.lr)

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """½ e^{-s}."""
        return 0.5 * torch.exp(-self.log_variance.values)

    def learn(self, losses: Tensor, context: StepContext, feedback: Feedback) -> None:
        """A step of the log variances."""
        slope = 0.5 * (1 - torch.exp(-self.log_variance.values) * losses)
        lr = learning_rate(self.lr, self.reach, context)
        self.log_variance.step(slope, context.present, lr)

    def state_dict(self) -> dict[str, Any]:
        """Log variances and their optimiser."""
        return {"log_variance": self.log_variance.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.log_variance.load_state_dict(state["log_variance"])
