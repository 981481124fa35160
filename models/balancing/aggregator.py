"""What a gradient aggregator is where it has nothing of its own to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from equipoise.models.balancing.protocol import Need
from equipoise.models.batch import TaskHead


class Aggregator:
    """An aggregator that needs only the gradients of the step and has no state; methods override what differs."""

    needs: frozenset[Need] = frozenset()

    def __init__(self, params: BaseModel, heads: Sequence[TaskHead]) -> None:
        """Takes nothing from either."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses state, which can only be another method's."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, the checkpoint holds {', '.join(map(str, state))}"
            )
