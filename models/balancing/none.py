"""No aggregation: the gradient of the weighted sum of the losses."""

from __future__ import annotations

from equipoise.models.balancing.protocol import Aggregator


class NoAggregation(Aggregator):
    """One backward pass for all tasks; conflicts between tasks are ignored."""
