"""The coordinate-wise median (Yin et al., ICML 2018, arXiv 1803.01498)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.platform.federation.rules.blocks import blocks_of
from equipoise.platform.federation.rules.protocol import Rule, Vector
from equipoise.platform.federation.update import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema


class Median(Rule):
    """The median of every coordinate over the sites that trained it; of two middle ones, their mean.

    Sites count alike, however many patients they have: weights would let the largest one decide.
    """

    def combine(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The medians."""
        found = np.zeros(schema.size, np.float32)
        for block in blocks_of(updates, schema, weights):
            for _, part, x in block.chunks():
                found[part] = np.median(x, axis=0)
        return found
