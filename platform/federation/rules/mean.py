"""The weighted mean of updates (McMahan et al., AISTATS 2017, arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.platform.federation.fixed_point import FixedPoint, WeightedMean
from equipoise.platform.federation.rules.params import MeanParams
from equipoise.platform.federation.rules.protocol import Rule, Vector
from equipoise.platform.federation.rules.shares import capped
from equipoise.platform.federation.update import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema


class Mean(Rule):
    r""":math:`\sum_i w_i \Delta_i / \sum_i w_i`, group by group, in fixed point as the engine sums.

    One update can move it anywhere: it is safe behind the gate's norm bound only.
    """

    def __init__(self, params: MeanParams, seed: int = 0) -> None:
        self.max_share = params.max_share
        self.streaming = params.max_share is None

    def combine(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The mean; where ``max_share`` is set, of weights cut to it."""
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
        own = {group: float(row[i]) for group, row in weights.items()}
        mean.add(update.delta, own, 1.0 if factors is None else float(factors[i]))
    return mean.result()
