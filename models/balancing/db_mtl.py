"""DB-MTL (Lin et al., 2023, arXiv 2308.12029, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import DbMtlParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.batch import TaskHead


class DbMtl(Aggregator):
    r"""Gradients of the *logarithms* of losses, averaged over steps and brought to the largest of their norms:

    .. math:: \hat g_k = g_k / L_k, \qquad
              m_k \leftarrow \beta_n m_k + (1 - \beta_n) \hat g_k, \quad \beta_n = \beta / n^{\sigma}, \qquad
              d = \max_j \|m_j\| \sum_k m_k / \|m_k\|

    in the n-th step in which task k is present. A task's own parameters follow :math:`\partial \log L_k` too, as
    published.

    Notes
    -----
    The balancer weights every loss by 1/L, because the entry says ``log_losses``; gradients come here as
    :math:`\hat g_k`.
    A task's average starts at its first gradient, not at zero: the direction is the same, its norm does not
    begin 1 − β too small. State is ``[T, P]``.
    """

    def __init__(self, params: DbMtlParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.beta, self.sigma = params.beta, params.sigma
        self.mean = torch.zeros(len(heads), 0)
        self.seen = torch.zeros(len(heads), dtype=torch.int64)

    def direction(self, jacobian: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[P]`` d."""
        if self.mean.shape[1] == 0:
            self.mean = jacobian.new_zeros(len(self.mean), jacobian.shape[1])
        self.mean = self.mean.to(jacobian.device)
        for i, row in enumerate(context.rows):
            self.seen[row] += 1
            n = int(self.seen[row])
            beta = 0.0 if n == 1 else self.beta / n**self.sigma
            self.mean[row].lerp_(jacobian[i], 1 - beta)
        norms = torch.stack([self.mean[row].norm() for row in context.rows])
        scale = self.mean.new_zeros(len(self.mean))
        scale[list(context.rows)] = torch.where(norms > 0, norms.max() / norms, 0.0)
        return scale @ self.mean

    def state_dict(self) -> dict[str, Any]:
        """``[T, P]`` averages and ``[T]`` how many steps are in them."""
        return {"mean": self.mean.clone(), "seen": self.seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.mean, self.seen = state["mean"].clone(), state["seen"].clone()
