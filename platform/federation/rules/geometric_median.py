"""The geometric median (Pillutla, Kakade and Harchaoui, IEEE TSP 2022, arXiv 1912.13445, "RFA")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.platform.federation.rules.blocks import blocks_of
from equipoise.platform.federation.rules.params import GeometricMedianParams
from equipoise.platform.federation.rules.protocol import Array, Rule, Vector
from equipoise.platform.federation.update import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema

#: Change of the shares at which Weiszfeld's steps end.
STILL = 1e-12


class GeometricMedian(Rule):
    r"""The point with the smallest weighted sum of distances, :math:`\arg\min_z \sum_i \alpha_i \|z - \Delta_i\|`.

    Sites that hold less than half of the weight cannot move it arbitrarily far. Smoothed Weiszfeld steps
    :math:`z \leftarrow \sum_i \beta_i \Delta_i / \sum_i \beta_i`, :math:`\beta_i = \alpha_i / \max(\nu, \|z -
    \Delta_i\|)`. z stays a combination of the updates, so that distances follow from their products and no step
    touches a vector of the model's size.
    """

    def __init__(self, params: GeometricMedianParams, seed: int = 0) -> None:
        self.iterations = params.iterations
        self.smoothing = params.smoothing

    def combine(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The medians of all blocks."""
        found = np.zeros(schema.size, np.float32)
        for block in blocks_of(updates, schema, weights):
            block.add_up(self._shares(block.gram(), block.shares()), found)
        return found

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
            if moved < STILL:
                break
        return beta
