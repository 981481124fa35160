"""Norm clipping: no update is longer than the median one (Sun et al. 2019, arXiv 1911.07963)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.platform.federation.aggregation.blocks import blocks_of
from equipoise.platform.federation.aggregation.mean import capped, mean_of
from equipoise.platform.federation.aggregation.protocol import Array, StatelessAggregation, Vector
from equipoise.platform.federation.entries import NormClipParams
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema


class NormClip(StatelessAggregation):
    r"""Weighted mean of :math:`\min(1, k \, \mathrm{med}_j \|\Delta_j\| / \|\Delta_i\|) \, \Delta_i`.

    The median is that of the round, so that no bound has to be chosen; a minority of sites cannot move it far.
    Directions are unchanged: a malicious site keeps the influence of an honest one.
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


def norms_of(updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Array:
    """``[C]`` lengths of the updates over the groups in which they take part."""
    squares = {update.client: 0.0 for update in updates}
    for block in blocks_of(updates, schema, weights):
        for client, square in zip(block.clients, block.gram().diagonal(), strict=True):
            squares[client] += float(square)
    return np.sqrt([squares[update.client] for update in updates])
