"""Dynamic weight average (Liu, Johns and Davison, CVPR 2019, equation 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import DwaParams
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.weighting import Weighting, positive
from equipoise.models.batch import TaskHead


class Dwa(Weighting):
    r"""A task whose loss falls slowly counts more. With mean losses :math:`L_k(t)` of epoch t and temperature τ,

    .. math:: r_k = \frac{L_k(t-1)}{L_k(t-2)}, \qquad w_k = T \, \mathrm{softmax}_k(r / \tau)

    and ones in the first two epochs.

    Notes
    -----
    Every task has its own history: an epoch without any of its labels is left out. A task that has
    not been seen in two epochs counts 1, and the others share what is left, so that weights always sum to T.
    """

    def __init__(self, params: DwaParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.temperature = params.temperature
        self.history = torch.full((2, len(heads)), torch.nan, dtype=torch.float64)  # before last, last

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """T softmax(r / τ) among tasks with two epochs behind them, 1 for the others."""
        before, last = self.history
        known = ~before.isnan()
        ratios = last[known] / positive(before[known], "dwa")
        weights = torch.ones_like(before)
        weights[known] = len(ratios) * torch.softmax(ratios / self.temperature, dim=0)
        return weights

    def on_epoch_end(self, mean_losses: Tensor) -> None:
        """Add an epoch to the history of every task that had labels."""
        seen = ~mean_losses.isnan()
        self.history[0, seen] = self.history[1, seen]
        self.history[1, seen] = mean_losses[seen].to(self.history)

    def state_dict(self) -> dict[str, Any]:
        """Mean losses of the last two epochs."""
        return {"history": self.history.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        if state["history"].shape != self.history.shape:
            raise ValueError(
                f"the checkpoint holds losses of {state['history'].shape[1]} tasks, not {self.history.shape[1]}"
            )
        self.history = state["history"].clone()
