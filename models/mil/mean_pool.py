"""The simplest baseline: the mean tile, a small network over it, linear heads.

A mean cannot show few tumour tiles among many, or combinations of tiles. The score of this baseline says how
much of a result needs attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import MeanPoolParams


class MeanPool(MultiTaskModel):
    """Mean over existing tiles → ``layers`` of Linear, ReLU, dropout → linear heads.

    Parameters
    ----------
    params
        With ``layers: 0`` the heads are linear in the mean tile, and tasks share no parameter.
    shape, heads
        As in :class:`~equipoise.models.base.MultiTaskModel`.
    """

    def __init__(self, params: MeanPoolParams, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        super().__init__(shape, heads)
        self.build_heads(params.dim if params.layers else shape.features)
        widths = [shape.features, *[params.dim] * params.layers]
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Dropout(params.dropout))
                for a, b in itertools.pairwise(widths)
            )
        )

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """The same vector for every task."""
        return [self.body(mean_tile(batch))] * len(self.task_heads)


def mean_tile(batch: CaseBatch) -> Tensor:
    """``[B, D]`` mean over the tiles that exist."""
    mask_BN = batch.key_mask
    if mask_BN is None:
        return batch.bags.mean(dim=1)
    counts_B1 = mask_BN.sum(dim=1, keepdim=True).clamp(min=1)
    weights_BN = mask_BN.to(batch.bags) / counts_B1
    return (weights_BN[:, None, :] @ batch.bags)[:, 0]
