"""No aggregation: the gradient of the weighted sum of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from equipoise.models.balancing.entries import NoParams
from equipoise.models.balancing.protocol import Need
from equipoise.models.batch import TaskHead


class NoAggregation:
    """One backward pass for all tasks; conflicts between them are not looked at."""

    kind: Literal["none"] = "none"
    needs: frozenset[Need] = frozenset()

    def __init__(self, params: NoParams, heads: Sequence[TaskHead]) -> None:
        del params, heads

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses state, which can only be another method's."""
        if state:
            raise ValueError(f"aggregation 'none' has no state, the checkpoint holds {', '.join(state)}")
