"""Equal weighting: every task's mean loss counts once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import NoParams
from equipoise.models.balancing.protocol import Evidence, Need, StepContext
from equipoise.models.batch import TaskHead


class Equal:
    """The baseline: weights of 1, nothing learned, no state."""

    needs: frozenset[Need] = frozenset()

    def __init__(self, params: NoParams, heads: Sequence[TaskHead]) -> None:
        del params, heads

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """Ones."""
        del context
        return torch.ones_like(losses)

    def learn(self, losses: Tensor, context: StepContext, evidence: Evidence) -> None:
        """Equal weights learn nothing."""

    def on_epoch_end(self, mean_losses: Tensor) -> None:
        """Equal weights do not look at losses."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses state, which can only be another method's."""
        if state:
            raise ValueError(f"equal weighting has no state, the checkpoint holds {', '.join(state)}")
