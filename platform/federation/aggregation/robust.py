"""Robust aggregations, which bound the influence of a malicious or broken site. Block by block, see ``blocks``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.blocks import Block, blocks_of
from equipoise.platform.federation.aggregation.protocol import Array, StatelessAggregation, Vector
from equipoise.platform.federation.entries import (
    GeometricMedianParams,
    KrumParams,
    MultiKrumParams,
    TrimmedMeanParams,
)
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema

#: Weiszfeld's iteration ends when the shares change by less than this.
TOLERANCE = 1e-12


class Median(StatelessAggregation):
    """The median of every coordinate over the sites that trained it; of two middle ones, their mean.

    All sites count equally, however many patients they have: with weights, the largest site could decide alone. Yin
    et al., ICML 2018 (arXiv 1803.01498).
    """

    def aggregate(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The medians."""
        result = np.zeros(schema.size, np.float32)
        for block in blocks_of(updates, schema, weights):
            for _, part, x in block.chunks():
                result[part] = np.median(x, axis=0)
        return result


class TrimmedMean(StatelessAggregation):
    r"""The mean of every coordinate without the :math:`\lfloor \beta c \rfloor` largest and smallest values.

    All sites count equally. With so few sites that nothing is trimmed it is their plain mean. Yin et al., ICML 2018
    (arXiv 1803.01498).
    """

    def __init__(self, params: TrimmedMeanParams, seed: int = 0) -> None:
        self.trim = params.trim

    def aggregate(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The trimmed means."""
        result = np.zeros(schema.size, np.float32)
        for block in blocks_of(updates, schema, weights):
            cut = int(
                self.trim * len(block) + 1e-9
            )  # 0.2 * 5 must give 1, although 0.2 is not exact in binary
            for _, part, x in block.chunks():
                x.sort(axis=0)
                result[part] = x[cut : len(block) - cut].mean(axis=0)
        return result


class GeometricMedian(StatelessAggregation):
    r"""The point with the smallest weighted sum of distances, :math:`\arg\min_z \sum_i \alpha_i \|z - \Delta_i\|`.

    Sites that hold less than half of the weight cannot move it arbitrarily far. Smoothed Weiszfeld steps
    :math:`z \leftarrow \sum_i \beta_i \Delta_i / \sum_i \beta_i`, :math:`\beta_i = \alpha_i / \max(\nu, \|z -
    \Delta_i\|)`. z stays a combination of the updates, so that distances follow from their products and no step
    touches a vector of the model's size. Pillutla, Kakade and Harchaoui, IEEE TSP 2022 (arXiv 1912.13445), "RFA".
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


class MultiKrum(StatelessAggregation):
    r"""Weighted mean of the ``keep`` updates with the smallest scores. The score of an update is the sum of its
    squared distances to the c - f - 2 nearest others, f of c being malicious.

    With few and dissimilar sites it can exclude the largest honest ones; check its clean cost in the report.
    Blanchard et al., NeurIPS 2017 (arXiv 1703.02757).
    """

    def __init__(self, params: MultiKrumParams, seed: int = 0) -> None:
        self.malicious = params.malicious
        self.keep = params.keep

    def aggregate(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The mean of the selected updates, block by block."""
        result = np.zeros(schema.size, np.float32)
        for block in blocks_of(updates, schema, weights):
            keep = len(block) - self.malicious if self.keep is None else self.keep
            chosen = by_score(block, self.malicious)[:keep]
            only = {group: row[chosen] for group, row in block.weights.items()}
            selected = (tuple(block.clients[i] for i in chosen), tuple(block.vectors[i] for i in chosen))
            Block(block.groups, *selected, block.spans, only).write_average(result)
        return result


class Krum(MultiKrum):
    """The one update with the smallest score."""

    def __init__(self, params: KrumParams, seed: int = 0) -> None:
        self.malicious = params.malicious
        self.keep = 1


def by_score(block: Block, malicious: int) -> NDArray[np.intp]:
    """``[c]`` indices of the clients by score, smallest first; ties are broken by name.

    Raises
    ------
    FederationError
        If fewer than 2 f + 3 clients trained the block.
    """
    c = len(block)
    if c < 2 * malicious + 3:
        raise FederationError(
            f"Krum with {malicious} malicious sites needs {2 * malicious + 3} sites, "
            f"and {c} trained {', '.join(block.groups)}",
            fix="use server_aggregation: geometric_median or norm_clip, or a smaller `malicious`",
        )
    gram = block.gram()
    squares = gram.diagonal()
    distances = np.maximum(squares[:, None] + squares - 2 * gram, 0)
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, : c - malicious - 2].sum(axis=1)
    return np.argsort(scores, kind="stable")
