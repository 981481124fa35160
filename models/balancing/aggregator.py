"""Base class of gradient aggregators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from equipoise.models.balancing.entries import AggregatorParams, Kind, Needs
from equipoise.models.batch import TaskHead


class Aggregator:
    """A gradient aggregator without state; subclasses override what differs.

    Parameters
    ----------
    params
        Of the entry; its class says the ``kind`` of method and what it ``needs``.
    heads
        The T tasks.
    """

    def __init__(self, params: AggregatorParams, heads: Sequence[TaskHead]) -> None:
        self.kind: Kind = params.kind
        self.needs: Needs = params.needs

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a state: it belongs to another method."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, the checkpoint holds {', '.join(map(str, state))}"
            )
