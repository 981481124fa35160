"""The weighted mean of updates, and the mean of updates whose lengths are bounded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.blocks import blocks_of
from equipoise.platform.federation.aggregation.protocol import Array, StatelessAggregation, Vector
from equipoise.platform.federation.aggregation.sums import WeightedMean
from equipoise.platform.federation.entries import MeanParams, NormClipParams
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema


class Mean(StatelessAggregation):
    r""":math:`\sum_i w_i \Delta_i / \sum_i w_i`, group by group.

    A single update can move it anywhere; use it with the norm bound of the update validator. McMahan et al., AISTATS
    2017 (arXiv 1602.05629).
    """

    def __init__(self, params: MeanParams, seed: int = 0) -> None:
        self.max_share = params.max_share
        self.streaming = params.max_share is None

    def aggregate(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The mean; with ``max_share``, of weights capped to it."""
        return mean_of(updates, schema, capped(weights, self.max_share))


class NormClip(StatelessAggregation):
    r"""Weighted mean of :math:`\min(1, k \, \mathrm{med}_j \|\Delta_j\| / \|\Delta_i\|) \, \Delta_i`.

    The median is that of the round, so that no bound has to be chosen; a minority of sites cannot move it far.
    Directions are unchanged: a malicious site keeps the influence of an honest one. Sun et al. 2019 (arXiv
    1911.07963).
    """

    def __init__(self, params: NormClipParams, seed: int = 0) -> None:
        self.factor = params.factor
        self.max_share = params.max_share

    def aggregate(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The mean of clipped updates; the norm of an update is over all groups that its site trained."""
        norms = norms_of(updates, schema, weights)
        moving = norms[norms > 0]
        bound = self.factor * float(np.median(moving)) if len(moving) else 0.0
        factors = np.where(norms > bound, bound / np.where(norms > 0, norms, 1.0), 1.0)
        return mean_of(updates, schema, capped(weights, self.max_share), factors.tolist())


def mean_of(
    updates: Sequence[ClientUpdate],
    schema: Schema,
    weights: GroupWeights,
    factors: Sequence[float] | None = None,
) -> Vector:
    """``[P]`` Σ factor · weight · update / Σ weight, summed in the order of names."""
    mean = WeightedMean(schema)
    for i in sorted(range(len(updates)), key=lambda i: updates[i].client):
        client_weights = {group: float(row[i]) for group, row in weights.items()}
        mean.add(updates[i].delta, client_weights, 1.0 if factors is None else float(factors[i]))
    result = mean.result()
    if not np.isfinite(result).all():
        raise FederationError("updates that are not finite reached a server aggregation")
    return result


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


def norms_of(updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Array:
    """``[C]`` lengths of the updates over the groups in which they take part."""
    squares = {update.client: 0.0 for update in updates}
    for block in blocks_of(updates, schema, weights):
        for client, square in zip(block.clients, block.gram().diagonal(), strict=True):
            squares[client] += float(square)
    return np.sqrt([squares[update.client] for update in updates])
