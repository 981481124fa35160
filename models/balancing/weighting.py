"""What a loss weighting is where it has nothing of its own to say."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from equipoise.models.balancing.protocol import Evidence, Need, StepContext


class Weighting:
    """A weighting that asks for nothing, learns nothing and has no state; methods override what they do."""

    needs: frozenset[Need] = frozenset()

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """``[T]`` weights; every method has its own."""
        raise NotImplementedError

    def learn(self, losses: Tensor, context: StepContext, evidence: Evidence) -> None:
        """Learns nothing."""

    def on_epoch_end(self, mean_losses: Tensor) -> None:
        """Does not look at epochs."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses state, which can only be another method's."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, the checkpoint holds {', '.join(map(str, state))}"
            )
