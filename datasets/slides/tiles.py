"""The pixels of a plan: tiles read run by run, with unreadable ones set aside and counted, never replaced."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import SlideReader


@dataclass(frozen=True, eq=False)
class TileBlock:
    """Tiles that were read together.

    Attributes
    ----------
    index
        int64 ``[n]``, places of the tiles in their plan.
    pixels
        uint8 ``[n, px, px, 3]``.
    bad
        Place and reason of every tile of the block that could not be read.
    """

    index: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    bad: list[tuple[int, str]] = field(default_factory=list)


def read_block(reader: SlideReader, plan: TilePlan, run: slice, resample: str = "area") -> TileBlock:
    """Read a run of tiles.

    A tile that OpenSlide cannot decode is left out and reported in ``bad``; the reader has then already
    opened a new handle, so that the good tiles behind it are read as if nothing had happened.

    Parameters
    ----------
    reader
        Open slide.
    plan
        Tiles of that slide.
    run
        Which of them, from :meth:`TilePlan.blocks`.
    resample
        As in :meth:`SlideReader.read`.
    """
    pixels = np.empty((run.stop - run.start, plan.px, plan.px, 3), np.uint8)
    index: list[int] = []
    bad: list[tuple[int, str]] = []
    for at in range(run.start, run.stop):
        try:
            tile = reader.read(
                int(plan.x[at]), int(plan.y[at]), plan.side, plan.side, (plan.px, plan.px), resample
            )
        except SlideProblem as problem:
            bad.append((at, problem.line))
            continue
        pixels[len(index)] = tile
        index.append(at)
    return TileBlock(np.array(index, np.int64), pixels[: len(index)], bad)
