"""The geometric median (Pillutla, Kakade and Harchaoui, IEEE TSP 2022, arXiv 1912.13445, "RFA")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.platform.federation.aggregation.blocks import blocks_of
from equipoise.platform.federation.aggregation.protocol import Array, StatelessAggregation, Vector
from equipoise.platform.federation.entries import GeometricMedianParams
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema

#: Weiszfeld's iteration ends when the shares change by less than this.
TOLERANCE = 1e-12


class GeometricMedian(StatelessAggregation):
    r"""The point with the smallest weighted sum of distances, :math:`\arg\min_z \sum_i \alpha_i \|z - \Delta_i\|`.

    Sites that hold less than half of the weight cannot move it arbitrarily far. Smoothed Weiszfeld steps
    :math:`z \leftarrow \sum_i \beta_i \Delta_i / \sum_i \beta_i`, :math:`\beta_i = \alpha_i / \max(\nu, \|z -
    \Delta_i\|)`. z stays a combination of the updates, so that distances follow from their products and no step
    touches a vector of the model's size.
    """

    def __init__(self, params: GeometricMedianParams, seed: int = 0) -> None:
        self.iterations = params.iterations
        self.smoothing = params.smoothing

    def aggregate(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The medians of all blocks."""
        result = np.zeros(schema.size, np.float32)
        for block in blocks_of(updates, schema, weights):
            block.write_weighted_sum(self._shares(block.gram(), block.shares()), result)
        return result

    def _shares(self, gram: Array, alpha: Array) -> Array:
        """``[c]`` shares of the updates in the median."""
        squares = gram.diagonal()
        least = self.smoothing * float(np.sqrt(np.median(squares))) or 1.0
        beta = alpha
        for _ in range(self.iterations):
            distances = np.sqrt(np.maximum(squares - 2 * (gram @ beta) + beta @ gram @ beta, 0))
            new = alpha / np.maximum(distances, least)
            new /= new.sum()
            moved = float(np.abs(new - beta).max())
            beta = new
            if moved < TOLERANCE:
                break
        return beta
