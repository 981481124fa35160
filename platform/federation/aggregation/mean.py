"""The weighted mean of updates (McMahan et al., AISTATS 2017, arXiv 1602.05629).

``capped`` bounds the share of one site in a sum, whatever number of patients it declares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.platform.federation.aggregation.protocol import Array, StatelessAggregation, Vector
from equipoise.platform.federation.entries import MeanParams
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.privacy.fixed_point import FixedPoint, WeightedMean
from equipoise.platform.federation.vector import Schema


class Mean(StatelessAggregation):
    r""":math:`\sum_i w_i \Delta_i / \sum_i w_i`, group by group, in the fixed-point arithmetic of the engine.

    A single update can move it anywhere; use it with the norm bound of the update validator.
    """

    def __init__(self, params: MeanParams, seed: int = 0) -> None:
        self.max_share = params.max_share
        self.streaming = params.max_share is None

    def aggregate(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The mean; with ``max_share``, of weights capped to it."""
        return mean_of(updates, schema, capped(weights, self.max_share))


def mean_of(
    updates: Sequence[ClientUpdate],
    schema: Schema,
    weights: GroupWeights,
    factors: Sequence[float] | None = None,
) -> Vector:
    """``[P]`` Σ factor · weight · update / Σ weight, exact in any order of the updates."""
    mean = WeightedMean(schema, FixedPoint(summands=max(len(updates), 1)))
    for i, update in enumerate(updates):
        client_weights = {group: float(row[i]) for group, row in weights.items()}
        mean.add(update.delta, client_weights, 1.0 if factors is None else float(factors[i]))
    return mean.result()


def capped(weights: GroupWeights, max_share: float | None) -> GroupWeights:
    """Cap the weights so that none is more than ``max_share`` of the sum of its group; unchanged if none is.

    Larger weights are cut to one level, smaller ones keep their proportions. With fewer than 1 / ``max_share`` clients
    no such level exists, and all count equally.
    """
    if max_share is None:
        return weights
    return {group: _capped_row(np.asarray(row, np.float64), max_share) for group, row in weights.items()}


def _capped_row(row: Array, max_share: float) -> Array:
    positive = np.sort(row[row > 0])
    if len(positive) == 0 or positive[-1] <= max_share * positive.sum():
        return row
    if len(positive) * max_share <= 1:
        return (row > 0).astype(np.float64)
    for cut in range(1, len(positive)):
        # The ``cut`` largest are cut to a level t with t = max_share (rest + cut t).
        rest = positive[:-cut].sum()
        level = max_share * rest / (1 - max_share * cut) if max_share * cut < 1 else np.inf
        if level >= positive[-cut - 1]:
            break
    return np.minimum(row, level)
