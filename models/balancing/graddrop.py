"""GradDrop (Chen et al., NeurIPS 2020, arXiv 2010.06808, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.models.balancing.entries import GradDropParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.batch import TaskHead

#: Coordinates at a time: intermediate results stay in the cache.
CHUNK = 1 << 18


class GradDrop(Aggregator):
    r"""Every coordinate takes one sign and drops what disagrees. Per coordinate, with U uniform in [0, 1),

    .. math:: a = \sum_k |g_k|, \quad s = \sum_k g_k, \quad P = \tfrac12 (1 + s / a), \qquad
              d = \ell s + (1 - \ell) \begin{cases} \sum_k \max(g_k, 0) & P > U \\
                                                    \sum_k \min(g_k, 0) & \text{else} \end{cases}

    with leak ℓ. As the positive part of the sum is p = (a + s)/2 = P a and the negative one p − a, the choice is
    p > U a, without a division and without a pass per task.

    Notes
    -----
    Signs are those of gradients on shared parameters, as in its multi-task uses; the paper masks gradients of
    activations. U is drawn on the CPU also where gradients are on a GPU: the stream of a CUDA generator depends
    on the number of multiprocessors, so that different GPUs in one job would draw different masks, and a
    training resumed elsewhere as well. Drawing costs 4 ns per parameter.
    """

    def __init__(self, params: GradDropParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.leak = params.leak

    def direction(self, jacobian: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[P]`` d."""
        d, generator = torch.empty_like(jacobian[0]), context.generator()
        for part, kept in zip(jacobian.split(CHUNK, dim=1), d.split(CHUNK), strict=True):
            total, size = part.sum(0), part.abs().sum(0)
            positive = (total + size) / 2
            uniform = torch.rand(len(total), generator=generator).to(size)
            kept.copy_(
                torch.where(positive > uniform * size, positive, positive - size).lerp_(total, self.leak)
            )
        return d
