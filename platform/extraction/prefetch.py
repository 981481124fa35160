"""From a tile plan to full batches: threads prefetch a bounded number of blocks, in an order fixed by the plan."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import SlideReader
from equipoise.datasets.slides.tiles import TileBlock, read_block, tile_blocks


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
