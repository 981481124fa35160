"""Attention-based multiple-instance learning with gated attention.

Source: Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018
(arXiv 1802.04712), equations 7 and 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import AbmilParams


class GatedAttention(nn.Module):
    r"""Weights :math:`a_n \propto \exp\{w^\top(\tanh(V h_n) \odot \sigma(U h_n))\}` of tiles (equation 9)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.content = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, h_BNE: Tensor, mask_BN: Tensor | None) -> Tensor:
        """``[B, N]`` weights that sum to 1 over the tiles that exist and are 0 elsewhere."""
        gated = torch.tanh(self.content(h_BNE)) * torch.sigmoid(self.gate(h_BNE))
        scores_BN = self.score(gated)[..., 0]
        if scores_BN.dtype != torch.float64:
            scores_BN = scores_BN.float()  # a softmax in half precision would lose small weights
        if mask_BN is not None:
            scores_BN = scores_BN.masked_fill(~mask_BN, -torch.inf)
        return scores_BN.softmax(dim=1)


class Abmil(MultiTaskModel):
    """Projection with ReLU and dropout → gated attention → weighted mean of projected tiles → linear heads.

    Parameters
    ----------
    params
        Sizes. ``branches: shared`` has one attention for all tasks, ``branches: task`` one for each, which
        then belongs to the task and not to the shared parameters.
    shape, heads
        As in :class:`~equipoise.models.base.MultiTaskModel`.
    """

    def __init__(self, params: AbmilParams, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        super().__init__(shape, heads)
        self.build_heads(params.dim)
        self.project = nn.Sequential(
            nn.Linear(shape.features, params.dim), nn.ReLU(), nn.Dropout(params.dropout)
        )
        branches = len(heads) if params.branches == "task" else 1
        self.per_task = params.branches == "task"
        self.attentions = nn.ModuleList(GatedAttention(params.dim, params.hidden) for _ in range(branches))

    @property
    def has_attention(self) -> bool:
        """Always."""
        return True

    def attention(self, batch: CaseBatch) -> dict[str, Tensor]:
        """task → ``[B, N]`` weights with which :meth:`pool` averages the tiles."""
        h_BNE = self.project(batch.bags)
        each = self._per_task([attention(h_BNE, batch.key_mask) for attention in self.attentions])
        return {head.name: weights for head, weights in zip(self.task_heads, each, strict=True)}

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """The weighted mean of a task's branch (equation 7)."""
        h_BNE = self.project(batch.bags)
        if self.per_task:
            h_BNE = self.representation(h_BNE)
        pooled = []
        for attention in self.attentions:
            weights_BN = attention(h_BNE, batch.key_mask)
            pooled.append((weights_BN[:, None, :].to(h_BNE) @ h_BNE)[:, 0])
        return self._per_task(pooled)

    def task_modules(self, index: int) -> list[nn.Module | nn.Parameter]:
        """The head and, with ``branches: task``, the task's attention."""
        return [*super().task_modules(index), *([self.attentions[index]] if self.per_task else [])]

    def _per_task(self, of_branches: list[Tensor]) -> list[Tensor]:
        return of_branches if self.per_task else of_branches * len(self.task_heads)
