"""Base class of gradient aggregators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from equipoise.models.balancing.protocol import Need
from equipoise.models.batch import TaskHead


class Aggregator:
    """A gradient aggregator without needs and without state; subclasses override what differs."""

    needs: frozenset[Need] = frozenset()

    def __init__(self, params: BaseModel, heads: Sequence[TaskHead]) -> None:
        """Ignores both."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a state: it belongs to another method."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, the checkpoint holds {', '.join(map(str, state))}"
            )
