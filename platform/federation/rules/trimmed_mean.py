"""The coordinate-wise trimmed mean (Yin et al., ICML 2018, arXiv 1803.01498)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.platform.federation.rules.blocks import blocks_of
from equipoise.platform.federation.rules.params import TrimmedMeanParams
from equipoise.platform.federation.rules.protocol import Rule, Vector
from equipoise.platform.federation.update import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema


class TrimmedMean(Rule):
    r"""The mean of every coordinate without the :math:`\lfloor \beta c \rfloor` largest and smallest values.

    Sites count alike. With so few sites that nothing is trimmed it is their plain mean.
    """

    def __init__(self, params: TrimmedMeanParams, seed: int = 0) -> None:
        self.trim = params.trim

    def combine(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The trimmed means."""
        found = np.zeros(schema.size, np.float32)
        for block in blocks_of(updates, schema, weights):
            cut = int(self.trim * len(block) + 1e-9)  # 0.2 * 5 is 1, also where it is not in binary
            for _, part, x in block.chunks():
                x.sort(axis=0)
                found[part] = x[cut : len(block) - cut].mean(axis=0)
        return found
