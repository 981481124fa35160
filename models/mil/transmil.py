"""TransMIL: two layers of Nyström attention with a convolutional position encoding between them.

Source: Shao et al., "TransMIL: transformer based correlated multiple instance learning for whole slide image
classification", NeurIPS 2021 (arXiv 2106.00908), algorithms 1 and 2. A class token collects what the heads
read. All tasks read the same token, as there is one in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import TransmilParams
from equipoise.models.mil.nystrom import NystromAttention


class TransMIL(MultiTaskModel):
    """Projection with ReLU → squaring → attention → position encoding → attention → norm → linear heads.

    Bags are processed one after another, each at its own length: squaring repeats a bag's first tiles, landmarks
    are means over its tokens and the grid has its side, and padding must not change any of these. What the heads read
    of a case is therefore bit for bit the same in any batch.

    Parameters
    ----------
    params
        Sizes; the defaults are the published ones.
    shape, heads
        As in :class:`~equipoise.models.base.MultiTaskModel`.
    """

    def __init__(self, params: TransmilParams, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        super().__init__(shape, heads)
        self.build_heads(params.dim)
        sizes = (params.dim, params.heads, params.landmarks, params.pinv_iterations, params.dropout)
        self.project = nn.Sequential(nn.Linear(shape.features, params.dim), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, params.dim))
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(params.dim) for _ in range(3))
        self.attention1, self.attention2 = NystromAttention(*sizes), NystromAttention(*sizes)
        self.positions = PyramidPositions(params.dim)

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """The class token of every bag, the same for every task."""
        if batch.key_mask is None:
            bags = list(batch.bags)
        else:
            bags = [bag[mask] for bag, mask in zip(batch.bags, batch.key_mask, strict=True)]
        return [torch.stack([self._one(bag) for bag in bags])] * len(self.task_heads)

    def _one(self, bag_ND: Tensor) -> Tensor:
        tokens_SE = squared(self.project(bag_ND))
        x = torch.cat([self.class_token.to(tokens_SE), tokens_SE])
        x = x + self.attention1(self.norm1(x))
        x = torch.cat([x[:1], self.positions(x[1:])])
        x = x + self.attention2(self.norm2(x))
        return self.norm(x[0])


def squared(tokens_ND: Tensor) -> Tensor:
    """Repeat the first tokens until there is a square number of them (algorithm 1)."""
    count = len(tokens_ND)
    side = math.isqrt(count - 1) + 1
    return torch.cat(
        [tokens_ND, tokens_ND[: side**2 - count]]
    )  # 2 (side - 1) at most, of which there are enough


class PyramidPositions(nn.Module):
    """Pyramid position encoding (PPEG, algorithm 2): x + depth-wise convolutions of 7, 5 and 3 on the grid.

    Convolutions are linear: kernels are added, one convolution is run instead of three, and there is one bias
    in place of three that would only occur as their sum.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv7 = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.conv5 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, bias=False)
        self.conv3 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)

    def forward(self, tokens_ND: Tensor) -> Tensor:
        """Tokens of a square grid, row by row; returns ``[N, dim]``."""
        side, dim = math.isqrt(len(tokens_ND)), tokens_ND.shape[1]
        pad = nn.functional.pad
        kernel = self.conv7.weight + pad(self.conv5.weight, [1] * 4) + pad(self.conv3.weight, [2] * 4)
        grid_1DRC = tokens_ND.T.reshape(1, dim, side, side)
        encoded = nn.functional.conv2d(grid_1DRC, kernel, self.conv7.bias, padding=3, groups=dim)
        return tokens_ND + encoded.reshape(dim, -1).T
