"""Equal weighting: every task's mean loss counts once."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.weighting import Weighting


class Equal(Weighting):
    """The baseline: weights of 1, nothing learned, no state."""

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """Ones."""
        del context
        return torch.ones_like(losses)
