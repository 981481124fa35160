"""The interface of server aggregations: updates of sites in, one update out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.federation.entries import AggregationParams
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema

Array = NDArray[np.float64]
Vector = NDArray[np.float32]


class ServerAggregation(Protocol):
    """Aggregates the updates of a round.

    ``streaming`` is true for the weighted mean, whose updates are summed as they arrive
    (:class:`~equipoise.platform.federation.aggregation.sums.WeightedMean`) and not held. Results do not depend
    on the order of the updates.
    """

    streaming: bool

    def aggregate(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """``[P]`` aggregated update.

        Parameters
        ----------
        updates
            C finite updates, one per client.
        schema
            Layout of the updates.
        weights
            Group → ``[C]``; a client with weight 0 is ignored in the group. If all weights are 0, so is the result.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """State between rounds, as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        ...


class StatelessAggregation:
    """Base class of server aggregations without state.

    Parameters
    ----------
    params
        Parameters of the aggregation.
    seed
        Of the federation, for aggregations with random draws.
    """

    streaming = False

    def __init__(self, params: AggregationParams, seed: int = 0) -> None:
        """Use neither."""

    def state_dict(self) -> dict[str, Any]:
        """An empty dictionary."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse the state of another aggregation."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, the checkpoint holds {', '.join(map(str, state))}"
            )
