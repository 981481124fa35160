"""Smooth Tchebycheff scalarisation, STCH (Lin et al., ICML 2024, arXiv 2402.19078)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import StchParams
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.weighting import Weighting, positive
from equipoise.models.batch import TaskHead


class Stch(Weighting):
    r"""Minimises a smooth maximum of the losses, so that every point of a front can be reached, also where it is
    not convex. With preferences λ and ideal point z,

    .. math:: \mu \log \sum_k \exp\frac{\lambda_k (f_k - z_k)}{\mu}, \qquad
              \frac{\partial}{\partial f_k} = \lambda_k \, \mathrm{softmax}_k\frac{\lambda (f - z)}{\mu}

    Losses come to one scale by their nadir :math:`n_k`, the mean loss of the last warm-up epoch; the ideal loss
    is 0. Weights are the gradient by L, times the number T of present tasks:

    - ``log``: :math:`f - z = \log(L / n)` and λ = 1, so that
      :math:`w_k = T \, \mathrm{softmax}_k(\log(L/n) / \mu) \, / \, L_k`; during warm-up :math:`1 / L_k`.
    - otherwise: f = L, z = 0 and λ = 1/n, so that
      :math:`w_k = T \, \mathrm{softmax}_k(L / (n \mu)) \, / \, n_k`; during warm-up 1.

    Notes
    -----
    ``log``, four epochs of warm-up and the factor T are what the authors' experiments on multi-task learning
    used; without ``log`` it is the formula of the paper. An epoch without labels of a task leaves its nadir as
    it was, and warm-up goes on in batches with a task that has none yet.
    """

    def __init__(self, params: StchParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.mu, self.log, self.warmup = params.mu, params.log, params.warmup_epochs
        self.nadir = torch.full((len(heads),), torch.nan, dtype=torch.float64)
        self.epochs = 0

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """Gradient of T times the smooth maximum over present tasks."""
        here = context.present
        present, nadir = positive(losses[here].double(), "stch"), self.nadir[here]
        if self.epochs < self.warmup or bool(nadir.isnan().any()):
            result = 1 / present if self.log else torch.ones_like(present)
        elif self.log:
            result = len(present) * torch.softmax(torch.log(present / nadir) / self.mu, dim=0) / present
        else:
            result = len(present) * torch.softmax(present / nadir / self.mu, dim=0) / nadir
        weights = torch.zeros_like(losses, dtype=torch.float64)
        weights[here] = result
        return weights

    def on_epoch_end(self, mean_losses: Tensor) -> None:
        """The nadir follows the losses during warm-up; later only a task that has none gets one."""
        self.epochs += 1
        new = ~mean_losses.isnan()
        if self.epochs > self.warmup:
            new &= self.nadir.isnan()
        self.nadir[new] = positive(mean_losses[new].double(), "stch")

    def state_dict(self) -> dict[str, Any]:
        """Nadir and the number of epochs behind it."""
        return {"nadir": self.nadir.clone(), "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.nadir = state["nadir"].clone()
        self.epochs = state["epochs"]
