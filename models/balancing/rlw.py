"""Random loss weighting (Lin et al., TMLR 2022, arXiv 2111.10603, algorithm 2): the test for every other method."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.weighting import Weighting


class Rlw(Weighting):
    r"""In every step :math:`w = \mathrm{softmax}(z)` with :math:`z \sim N(0, 1)^T`, over the tasks that are present.

    Draws are a function of seed, epoch and step: there is no state, and all workers draw the same numbers.
    """

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """Positive, of sum 1."""
        draws = torch.randn(len(losses), dtype=torch.float64, generator=context.generator())
        return torch.softmax(draws.masked_fill(~context.present, -torch.inf), dim=0)
