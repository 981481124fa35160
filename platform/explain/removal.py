"""Occlusion, and the prediction of single tiles: what the model says of other sets of tiles.

Neither needs a gradient, so that they work with every model that reads tiles. Occlusion is exact for what it asks,
which makes it the yardstick of the others, and costs a pass of the model for each tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.platform.errors import StudyError
from equipoise.platform.explain.entries import OcclusionParams, SingleTileParams
from equipoise.platform.explain.explained import Explained


class Occlusion:
    """The output of the case minus that of the case without the tile."""

    def __init__(self, params: OcclusionParams) -> None:
        self.params = params

    def scores(self, case: Explained) -> Tensor:
        """``[N]``.

        Raises
        ------
        StudyError
            If the case has a single tile, without which nothing is left.
        """
        if case.tiles < 2:
            raise StudyError(
                "a case with a single tile cannot do without it: use another method than occlusion"
            )
        count = case.tiles
        left_NM = torch.arange(count - 1).repeat(count, 1)
        left_NM += left_NM >= torch.arange(count)[:, None]
        return case.value() - case.values_of_tiles(left_NM)


class SingleTile:
    """The output of a case that is this tile alone, minus that of the case; tables stay as they are."""

    def __init__(self, params: SingleTileParams) -> None:
        self.params = params

    def scores(self, case: Explained) -> Tensor:
        """``[N]``."""
        return case.values_of_tiles(torch.arange(case.tiles)[:, None]) - case.value()
