"""Impartial learning of loss scales, IMTL-L (Liu et al., ICLR 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import ImtlLParams
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.balancing.weighting import LearnedVector, Weighting, learning_rate
from equipoise.models.batch import TaskHead


class ImtlL(Weighting):
    r"""Every task has a learned log scale :math:`s_k`, from 0; model and scales minimise

    .. math:: \sum_k e^{s_k} L_k - s_k

    so that :math:`w_k = e^{s_k}` and :math:`\partial/\partial s_k = e^{s_k} L_k - 1`: every scaled loss tends to
    1. This is twice uncertainty weighting with the other sign of s, derived without a likelihood.
    """

    def __init__(self, params: ImtlLParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.lr, self.reach = params.lr, params.reach
        self.log_scale = LearnedVector([0.0] * len(heads), lr=params.lr)

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """e^s."""
        return torch.exp(self.log_scale.values)

    def learn(self, losses: Tensor, context: StepContext, feedback: Feedback) -> None:
        """A step of the log scales."""
        slope = torch.exp(self.log_scale.values) * losses - 1
        self.log_scale.step(slope, context.present, learning_rate(self.lr, self.reach, context))

    def state_dict(self) -> dict[str, Any]:
        """Log scales and their optimiser."""
        return {"log_scale": self.log_scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.log_scale.load_state_dict(state["log_scale"])
