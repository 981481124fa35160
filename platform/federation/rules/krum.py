"""Krum and multi-Krum (Blanchard et al., NeurIPS 2017, arXiv 1703.02757)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.rules.blocks import Block, blocks_of
from equipoise.platform.federation.rules.params import KrumParams, MultiKrumParams
from equipoise.platform.federation.rules.protocol import Rule, Vector
from equipoise.platform.federation.update import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema


class MultiKrum(Rule):
    r"""Weighted mean of the ``keep`` updates with the smallest scores. The score of an update is the sum of its
    squared distances to the c - f - 2 nearest others, f of c being malicious.

    With few and unlike sites it leaves out the largest, honest as they are: look at its clean cost.
    """

    def __init__(self, params: MultiKrumParams, seed: int = 0) -> None:
        self.malicious = params.malicious
        self.keep = params.keep

    def combine(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The mean of those selected, block by block."""
        found = np.zeros(schema.size, np.float32)
        for block in blocks_of(updates, schema, weights):
            keep = len(block) - self.malicious if self.keep is None else self.keep
            chosen = nearest(block, self.malicious)[:keep]
            only = {group: row[chosen] for group, row in block.weights.items()}
            own = (tuple(block.clients[i] for i in chosen), tuple(block.vectors[i] for i in chosen))
            Block(block.groups, *own, block.spans, only).average(found)
        return found


class Krum(MultiKrum):
    """The one update with the smallest score."""

    def __init__(self, params: KrumParams, seed: int = 0) -> None:
        self.malicious = params.malicious
        self.keep = 1


def nearest(block: Block, malicious: int) -> NDArray[np.intp]:
    """``[c]`` places of the clients by score, smallest first; of equals, by name.

    Raises
    ------
    FederationError
        If fewer than 2 f + 3 clients trained the block: a majority is not defined.
    """
    c = len(block)
    if c < 2 * malicious + 3:
        raise FederationError(
            f"Krum with {malicious} malicious sites needs {2 * malicious + 3} sites, "
            f"and {c} trained {', '.join(block.groups)}",
            fix="use rule geometric_median or norm_clip, or a smaller `malicious`",
        )
    gram = block.gram()
    squares = gram.diagonal()
    apart = np.maximum(squares[:, None] + squares - 2 * gram, 0)
    np.fill_diagonal(apart, np.inf)
    scores = np.sort(apart, axis=1)[:, : c - malicious - 2].sum(axis=1)
    return np.argsort(scores, kind="stable")
