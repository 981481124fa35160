"""The pixels of a plan, read in blocks by threads and regrouped into full batches.

Unreadable tiles are left out and reported, never replaced. Threads prefetch a bounded number of blocks, in an order
fixed by the plan.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import SlideReader

#: Tiles in a run: 16 of 224 px are 2.4 MB.
_RUN = 16

#: Tiles along the side of a square: as a rule, and at most; and bytes of a block's pixels.
_USUAL_SIDE, _MOST_SIDE, _MOST_BYTES = 8, 16, 16 << 20


@dataclass(frozen=True, eq=False)
class TileBlock:
    """Tiles that were read together.

    Attributes
    ----------
    index
        int64 ``[n]``, indices of the tiles in their plan.
    pixels
        uint8 ``[n, px, px, 3]``.
    bad
        Place and reason of every tile of the block that could not be read.
    """

    index: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    bad: list[tuple[int, str]] = field(default_factory=list)


def tile_blocks(reader: SlideReader, plan: TilePlan) -> list[NDArray[np.int64]]:
    """Indices of the tiles that are read together: a whole plan, in an order that depends on file and plan only.

    On slides of JPEG tiles these are squares whose sides fall on the borders of JPEG tiles, or nearly so: what
    straddles a border is decoded twice. On others they are short runs.
    """
    level, scale = reader.source_of(plan.side, plan.px)
    tile = reader.jpeg_tile(level)
    if tile:
        return plan.squares(_square(plan.px, scale, tile))
    return [np.arange(run.start, run.stop) for run in plan.blocks(_RUN)]


def read_block(
    reader: SlideReader, plan: TilePlan, indices: NDArray[np.int64] | slice, resample: str = "area"
) -> TileBlock:
    """Read some tiles of a plan.

    A tile that cannot be decoded is left out and reported in ``bad``; the good tiles around it are read as if
    nothing had happened.

    Parameters
    ----------
    reader
        Open slide.
    plan
        Tiles of that slide.
    indices
        Which of them, from :func:`tile_blocks`.
    resample
        As in :meth:`SlideReader.read`.
    """
    indices = np.arange(len(plan))[indices]
    pixels, problems = reader.read_many(plan.x[indices], plan.y[indices], plan.side, plan.px, resample)
    if not problems:
        return TileBlock(indices, pixels)
    good = np.array([at for at in range(len(indices)) if at not in problems], np.int64)
    return TileBlock(
        indices[good], pixels[good], [(int(indices[at]), problems[at]) for at in sorted(problems)]
    )


def _square(px: int, scale: float, tile: tuple[int, int]) -> int:
    """Tiles along the side of a block: the number for which fewest JPEG tiles are decoded twice."""
    best, least = 1, math.inf
    for side in range(1, _MOST_SIDE + 1):
        if side > 1 and 3 * (side * px) ** 2 * max(1.0, scale / 2) ** 2 > _MOST_BYTES:
            break
        cost = math.prod(_touched(side * px * scale, length) for length in tile)
        if cost < least - 1e-9 or (cost < least + 1e-9 and side <= _USUAL_SIDE):
            best, least = side, cost
    return best


def _touched(length: float, tile: int) -> float:
    """JPEG tiles that a stretch of pixels touches on average, per JPEG tile that it is long."""
    aligned = abs(length / tile - round(length / tile)) < 1e-6
    return 1.0 if aligned and length >= tile else 1.0 + tile / length


@dataclass
class Timings:
    """Work on a slide: seconds of all threads that read it, seconds of its encoder, and tiles encoded."""

    reading: float = 0.0
    encoding: float = 0.0
    tiles: int = 0


def prefetch_blocks(
    reader: SlideReader,
    plan: TilePlan,
    resample: str,
    readers: int,
    ahead: int,
    timings: Timings | None = None,
) -> Generator[TileBlock, None, None]:
    """The blocks of a plan in order, read by ``readers`` threads, at most ``ahead`` blocks before they are used."""
    timings = timings or Timings()
    pending = deque(tile_blocks(reader, plan))
    waiting: deque[Future[tuple[TileBlock, float]]] = deque()
    with ThreadPoolExecutor(readers, thread_name_prefix="tiles") as pool:
        try:
            while pending or waiting:
                while pending and len(waiting) < ahead:
                    waiting.append(pool.submit(_timed, reader, plan, pending.popleft(), resample))
                block, seconds = waiting.popleft().result()
                timings.reading += seconds
                yield block
        finally:
            for future in waiting:
                future.cancel()


def _timed(
    reader: SlideReader, plan: TilePlan, indices: NDArray[np.int64], resample: str
) -> tuple[TileBlock, float]:
    started = time.perf_counter()
    return read_block(reader, plan, indices, resample), time.perf_counter() - started


def full_batches(
    blocks: Iterable[TileBlock], size: int, px: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Regroup blocks into batches of exactly ``size`` tiles of ``px`` pixels; only the last one is smaller.

    Which tiles share a batch depends on file and plan alone, not on how they were read. The pixels of a batch are
    valid only until the next batch is requested.
    """
    indices = np.empty(size, np.int64)
    buffer = np.empty((size, px, px, 3), np.uint8)
    held = 0
    for block in blocks:
        start = 0
        while start < len(block.index):
            take = min(size - held, len(block.index) - start)
            indices[held : held + take] = block.index[start : start + take]
            buffer[held : held + take] = block.pixels[start : start + take]
            held, start = held + take, start + take
            if held == size:
                yield indices, buffer
                held = 0
    if held:
        yield indices[:held], buffer[:held]


def drop_unreadable(
    blocks: Iterable[TileBlock], bad: list[tuple[int, str]], share: float, total: int
) -> Iterator[TileBlock]:
    """Yield the blocks and collect their unreadable tiles in ``bad``; raise when there are too many."""
    for block in blocks:
        bad.extend(block.bad)
        if len(bad) > share * total:
            raise SlideProblem("unreadable", too_many_unreadable(share, total, bad[0][1]))
        yield block


def too_many_unreadable(share: float, total: int, first: str) -> str:
    """Reason for a slide that is rejected."""
    return f"more than {share:.1%} of {total} tiles cannot be read, the first: {first}"


def some_unreadable(bad: int, total: int, first: str) -> str:
    """Remark on a slide with some unreadable tiles."""
    return f"{bad} of {total} tiles left out, the first: {first}"
