"""The coordinate-wise median and trimmed mean (Yin et al., ICML 2018, arXiv 1803.01498)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.platform.federation.aggregation.blocks import blocks_of
from equipoise.platform.federation.aggregation.protocol import StatelessAggregation, Vector
from equipoise.platform.federation.entries import TrimmedMeanParams
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema


class Median(StatelessAggregation):
    """The median of every coordinate over the sites that trained it; of two middle ones, their mean.

    All sites count equally, however many patients they have: with weights, the largest site could decide alone.
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

    All sites count equally. With so few sites that nothing is trimmed it is their plain mean.
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
