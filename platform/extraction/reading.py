"""From a plan to full batches of tiles: read ahead by threads, bounded, in an order that the plan decides."""

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
class Spent:
    """Work on a slide: seconds of the threads that read it, taken together, and of its encoder; encoded tiles."""

    reading: float = 0.0
    encoding: float = 0.0
    tiles: int = 0


def read_ahead(
    reader: SlideReader, plan: TilePlan, resample: str, readers: int, ahead: int, spent: Spent | None = None
) -> Generator[TileBlock, None, None]:
    """The blocks of a plan in their order, read by ``readers`` threads, at most ``ahead`` before they are used."""
    spent = spent or Spent()
    runs = deque(tile_blocks(reader, plan))
    waiting: deque[Future[tuple[TileBlock, float]]] = deque()
    with ThreadPoolExecutor(readers, thread_name_prefix="tiles") as pool:
        try:
            while runs or waiting:
                while runs and len(waiting) < ahead:
                    waiting.append(pool.submit(_timed, reader, plan, runs.popleft(), resample))
                block, seconds = waiting.popleft().result()
                spent.reading += seconds
                yield block
        finally:
            for future in waiting:
                future.cancel()


def _timed(
    reader: SlideReader, plan: TilePlan, places: NDArray[np.int64], resample: str
) -> tuple[TileBlock, float]:
    started = time.perf_counter()
    return read_block(reader, plan, places, resample), time.perf_counter() - started


def full_batches(
    blocks: Iterable[TileBlock], size: int, px: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Join and cut blocks into batches of exactly ``size`` tiles of ``px`` pixels; only the last one is
    smaller.

    Which tiles share a batch depends on file and plan alone, not on how they were read. The pixels of a batch are
    only good until the next one is asked for.
    """
    places = np.empty(size, np.int64)
    buffer = np.empty((size, px, px, 3), np.uint8)
    held = 0
    for block in blocks:
        start = 0
        while start < len(block.index):
            take = min(size - held, len(block.index) - start)
            places[held : held + take] = block.index[start : start + take]
            buffer[held : held + take] = block.pixels[start : start + take]
            held, start = held + take, start + take
            if held == size:
                yield places, buffer
                held = 0
    if held:
        yield places[:held], buffer[:held]


def tolerated(
    blocks: Iterable[TileBlock], bad: list[tuple[int, str]], share: float, total: int
) -> Iterator[TileBlock]:
    """Pass blocks on, collect their unreadable tiles in ``bad``; give the slide up when they are too many."""
    for block in blocks:
        bad.extend(block.bad)
        if len(bad) > share * total:
            raise SlideProblem("unreadable", too_many(share, total, bad[0][1]))
        yield block


def too_many(share: float, total: int, first: str) -> str:
    """Why a slide is given up."""
    return f"more than {share:.1%} of {total} tiles cannot be read, the first: {first}"


def left_out(bad: int, total: int, first: str) -> str:
    """What is said of a slide with some unreadable tiles."""
    return f"{bad} of {total} tiles left out, the first: {first}"
