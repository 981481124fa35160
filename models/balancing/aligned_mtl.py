"""Aligned-MTL (Senushkin et al., CVPR 2023, arXiv 2305.19000, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from equipoise.models.balancing.entries import AlignedMtlParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import PRECISION, UnitGradients, as_array
from equipoise.models.batch import TaskHead


class AlignedMtl(Aggregator):
    r"""The gradients' principal components are brought to one length, so that they are orthogonal to each other:
    with eigen-pairs (S, V) of G,

    .. math:: B = \sqrt\sigma \, V S^{-1/2} V^\top, \qquad \text{coefficients} = B \, 1 / T

    where σ is the smallest eigenvalue above 0 (``scale`` min), their (lower) median, or their mean (rmse).

    Notes
    -----
    Own code because of one line, the rank. torchjd counts eigenvalues above a float64 threshold, so that two
    parallel float32 gradients would scale everything down to their rounding; here it counts those of the
    cosines above T·1.2e-7, which are known that well however different the norms are. The mean over tasks is
    torchjd's, LibMTL takes the sum.
    """

    def __init__(self, params: AlignedMtlParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.scale = params.scale

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]``."""
        unit = UnitGradients.of(gram)
        if not len(unit):
            return torch.zeros_like(gram[0])
        rank = int((np.linalg.eigvalsh(unit.cosines) > len(unit) * PRECISION).sum())
        values, vectors = np.linalg.eigh(as_array(gram))
        S, V = values[-rank:], vectors[:, -rank:]
        sigma = {"min": S[0], "median": S[(len(S) - 1) // 2], "rmse": S.mean()}[self.scale]
        return torch.from_numpy(V @ (np.sqrt(sigma / S) * V.mean(0)))
