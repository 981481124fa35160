"""From a plan to full batches of tiles: read ahead by threads, bounded, in an order that the plan decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import SlideReader
from equipoise.datasets.slides.tiles import TileBlock, read_block, tile_blocks


def read_ahead(
    reader: SlideReader, plan: TilePlan, resample: str, readers: int, ahead: int
) -> Generator[TileBlock, None, None]:
    """The blocks of a plan in their order, read by ``readers`` threads, at most ``ahead`` before they are used."""
    runs = deque(tile_blocks(reader, plan))
    waiting: deque[Future[TileBlock]] = deque()
    with ThreadPoolExecutor(readers, thread_name_prefix="tiles") as pool:
        try:
            while runs or waiting:
                while runs and len(waiting) < ahead:
                    waiting.append(pool.submit(read_block, reader, plan, runs.popleft(), resample))
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


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
        if bad and (len(bad) > share * total or len(bad) == total):
            raise SlideProblem(
                "unreadable", f"at least {len(bad)} of {total} tiles cannot be read, the first: {bad[0][1]}"
            )
        yield block
