"""Krum and multi-Krum (Blanchard et al., NeurIPS 2017, arXiv 1703.02757)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.blocks import Block, blocks_of
from equipoise.platform.federation.aggregation.protocol import StatelessAggregation, Vector
from equipoise.platform.federation.entries import KrumParams, MultiKrumParams
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema


class MultiKrum(StatelessAggregation):
    r"""Weighted mean of the ``keep`` updates with the smallest scores. The score of an update is the sum of its
    squared distances to the c - f - 2 nearest others, f of c being malicious.

    With few and dissimilar sites it can exclude the largest honest ones; check its clean cost in the report.
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
