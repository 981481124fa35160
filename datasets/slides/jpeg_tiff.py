"""JPEG tiles of a TIFF, decoded without OpenSlide: five to ten times less CPU for the same pixels.

OpenSlide spends most of its time on drawing tiles it has long decoded. Here each JPEG tile that a block of
windows touches is read once (in the order of the file, neighbours in one call), decoded once, and copied into
the windows it overlaps. Windows are resampled by the same function as OpenSlide's regions, so that the results
are equal byte by byte; where a window shrinks by a whole factor that divides the tiles, each tile is shrunk
before it is copied, which gives the same pixels for a quarter of the copying. Before a level is used, a few of its
tiles are compared with OpenSlide's (:func:`self_check`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.resample import area_resample, source_size
from equipoise.datasets.slides.tiff_directory import JpegLevel, jpeg_levels

#: Sizes at which libjpeg decodes straight from the DCT coefficients, coarsest first.
REDUCTIONS = (8, 4, 2)

#: Ranges of the file this close are read in one call, up to this much at once.
_GAP, _MOST_AT_ONCE = 4096, 4 << 20

_EPSILON = 1e-6

#: Tiles that must be equal in a self-check, and tiles that are tried until that many are compared.
TILES, _TRIES = 3, 12

Problems = dict[int, str]

#: Reads a region through OpenSlide: corner at level 0, size in pixels of the level -> uint8 [h, w, 3].
Reference = Callable[[int, int, tuple[int, int]], NDArray[np.uint8]]


class JpegTiff:
    """The levels of a slide whose tiles are JPEG streams. Threads may share it.

    Parameters
    ----------
    path
        The file.
    vendor
        OpenSlide's name of the format.
    level_dimensions
        Width and height of OpenSlide's levels.

    Attributes
    ----------
    levels
        Per level of OpenSlide what can be read here, or why it cannot.
    """

    def __init__(self, path: Path, vendor: str, level_dimensions: Sequence[tuple[int, int]]) -> None:
        self._active, self._closed = 0, False
        self._idle = threading.Condition()
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self._size = os.fstat(self._fd).st_size
            self.levels = jpeg_levels(self._fd, vendor, level_dimensions)
        except BaseException:
            self.close()
            raise

    def level(self, at: int) -> JpegLevel | None:
        """A level, or ``None`` if it cannot be read here."""
        level = self.levels[at]
        return level if isinstance(level, JpegLevel) else None

    def close(self) -> None:
        """Close the file, after the reads that are under way."""
        with self._idle:
            closing, self._closed = not self._closed, True  # first: no new read begins
            self._idle.wait_for(lambda: not self._active)
            if closing:
                os.close(self._fd)

    def resampled(
        self,
        level: JpegLevel,
        x: NDArray[np.int64],
        y: NDArray[np.int64],
        out_px: tuple[int, int],
        scale: tuple[float, float],
        resample: str = "area",
    ) -> tuple[NDArray[np.uint8], Problems]:
        """Windows of a level at an exact scale.

        Parameters
        ----------
        level
            One of :attr:`levels`.
        x, y
            int64 ``[N]``, top-left corners in pixels of the level.
        out_px
            Width and height of the results.
        scale
            Pixels of the level per output pixel, >= 1.
        resample
            ``area``: as :func:`~equipoise.datasets.slides.resample.area_resample` of the full pixels, exactly.
            ``dct``: tiles are decoded at 1/2, 1/4 or 1/8, the rest of the way is ``area``.

        Returns
        -------
        windows, problems
            uint8 ``[N, height, width, 3]``, white outside the level and where tiles were left out; and
            reasons by window for those that cannot be read (their pixels mean nothing).
        """
        reduce = _reduction(x, y, scale, level) if resample == "dct" else 1
        rest = (scale[0] / reduce, scale[1] / reduce)
        shrink = _shrink(level, x, y, out_px, rest, reduce)
        if shrink:
            return self.windows(level, x, y, out_px, reduce, shrink)
        windows, problems = self.windows(level, x, y, source_size(out_px, rest), reduce)
        out = np.empty((len(x), out_px[1], out_px[0], 3), np.uint8)
        for at, window in enumerate(windows):
            if at not in problems:
                out[at] = area_resample(window, out_px, rest)
        return out, problems

    def windows(
        self,
        level: JpegLevel,
        x: NDArray[np.int64],
        y: NDArray[np.int64],
        size: tuple[int, int],
        reduce: int = 1,
        shrink: int = 1,
    ) -> tuple[NDArray[np.uint8], Problems]:
        """Windows of ``size`` (width, height) output pixels, each ``reduce * shrink`` pixels of the level wide.

        As :meth:`resampled`; corners and tiles must be multiples of ``reduce * shrink``.
        """
        unit = reduce * shrink
        width, height = size
        right, bottom = level.width // unit, level.height // unit
        wide, high = level.tile[0] // unit, level.tile[1] // unit
        lefts, tops = (x // unit).tolist(), (y // unit).tolist()
        out = np.empty((len(x), height, width, 3), np.uint8)
        wanted: dict[int, list[int]] = {}
        for at, (left, top) in enumerate(zip(lefts, tops, strict=True)):
            if left < 0 or top < 0 or left + width > right or top + height > bottom:
                out[at] = 255
            for row in range(max(top, 0) // high, -(-min(top + height, bottom) // high)):
                for column in range(max(left, 0) // wide, -(-min(left + width, right) // wide)):
                    wanted.setdefault(row * level.columns + column, []).append(at)
        problems: Problems = {}
        for index, pixels in self._tiles(level, wanted, reduce, shrink):
            cx, cy = index % level.columns * wide, index // level.columns * high
            for at in wanted[index]:
                if isinstance(pixels, str):
                    problems.setdefault(at, pixels)
                    continue
                left, top = lefts[at], tops[at]
                x0, x1 = max(left, cx), min(left + width, cx + wide, right)
                y0, y1 = max(top, cy), min(top + height, cy + high, bottom)
                out[at, y0 - top : y1 - top, x0 - left : x1 - left] = (
                    255 if pixels is None else pixels[y0 - cy : y1 - cy, x0 - cx : x1 - cx]
                )
        return out, problems

    def _tiles(
        self, level: JpegLevel, indices: Iterator[int] | dict[int, list[int]], reduce: int, shrink: int
    ) -> Iterator[tuple[int, NDArray[np.uint8] | str | None]]:
        """Decoded tiles in the order of the file; a reason for unreadable ones, ``None`` for left-out ones."""
        present = []
        for index in indices:
            if level.counts[index]:
                present.append((int(level.offsets[index]), int(level.counts[index]), index))
            else:
                yield index, None
        with self._reading():
            for index, stream in _streams(self._fd, self._size, sorted(present)):
                if isinstance(stream, str):
                    yield index, stream
                    continue
                try:
                    pixels = level.decode(stream, reduce)
                except ValueError as error:
                    yield index, str(error)
                    continue
                if shrink > 1:
                    small = (pixels.shape[1] // shrink, pixels.shape[0] // shrink)
                    pixels = area_resample(pixels, small, (shrink, shrink))
                yield index, pixels

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise ValueError("the slide is closed")
            self._active += 1
        try:
            yield
        finally:
            with self._idle:
                self._active -= 1
                self._idle.notify_all()


def _streams(
    fd: int, size: int, ranges: list[tuple[int, int, int]]
) -> Iterator[tuple[int, memoryview | str]]:
    """Bytes of ``(offset, count, index)`` in the order of offsets; neighbours are read together."""
    start = 0
    while start < len(ranges):
        first = ranges[start][0]
        end, stop = first, start
        while (
            stop < len(ranges) and ranges[stop][0] <= end + _GAP and ranges[stop][0] - first < _MOST_AT_ONCE
        ):
            # A count from a damaged directory may be anything: never ask for more than there is.
            end = max(end, min(ranges[stop][0] + ranges[stop][1], size))
            stop += 1
        reason = "the file ends before this tile does"
        try:
            data = memoryview(os.pread(fd, end - first, first)) if end > first else memoryview(b"")
        except OSError as error:
            data, reason = memoryview(b""), str(error)
        for offset, count, index in ranges[start:stop]:
            whole = offset - first + count <= len(data)
            yield index, data[offset - first : offset - first + count] if whole else reason
        start = max(stop, start + 1)


def _reduction(
    x: NDArray[np.int64], y: NDArray[np.int64], scale: tuple[float, float], level: JpegLevel
) -> int:
    """How much smaller than it is a tile is decoded: as much as the scale allows and corners fall on."""
    for reduce in REDUCTIONS:
        if reduce <= min(scale) * (1 + _EPSILON) and not (x % reduce).any() and not (y % reduce).any():
            return reduce
    return 1


def _shrink(
    level: JpegLevel,
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    out_px: tuple[int, int],
    rest: tuple[float, float],
    reduce: int,
) -> int:
    """The whole factor by which tiles may be shrunk one by one with the same result, 0 if there is none."""
    shrink = round(rest[0])
    if abs(rest[0] - shrink) > _EPSILON or abs(rest[1] - shrink) > _EPSILON:
        return 0
    if shrink == 1:
        return 1
    unit = reduce * shrink
    if level.tile[0] % unit or level.tile[1] % unit or (x % unit).any() or (y % unit).any():
        return 0
    # An output pixel half outside the level is half white: that takes the whole window to average.
    inside = x.min() >= 0 and y.min() >= 0
    inside &= x.max() + out_px[0] * unit <= level.width and y.max() + out_px[1] * unit <= level.height
    return shrink if inside else 0


def self_check(tiff: JpegTiff, level: JpegLevel, downsample: float, reference: Reference) -> str:
    """Compare three tiles, chosen by a generator that is seeded with the level's own shape.

    Tiles are drawn from the larger half: those hold tissue, and a wrong offset or colour shows.

    Parameters
    ----------
    tiff, level
        The level to check.
    downsample
        Level-0 pixels per pixel of the level, a whole number.
    reference
        OpenSlide.

    Returns
    -------
    Why this level has to be read through OpenSlide; empty if it need not. Tiles that neither can read are
    ignored, and so are those that only strict decoding refuses, as long as others are equal.
    """
    rng = np.random.default_rng([level.width, level.height, len(level.counts)])
    present = np.flatnonzero(level.counts)
    large = present[level.counts[present] >= np.median(level.counts[present])] if len(present) else present
    equal, refused = 0, ""
    for index in rng.permutation(large)[:_TRIES].tolist():
        x, y = index % level.columns * level.tile[0], index // level.columns * level.tile[1]
        size = (min(level.tile[0], level.width - x), min(level.tile[1], level.height - y))
        ours, problems = tiff.windows(level, np.array([x]), np.array([y]), size)
        try:
            theirs = reference(round(x * downsample), round(y * downsample), size)
        except SlideProblem:
            continue
        if problems:
            refused = problems[0]
            continue
        if not np.array_equal(ours[0], theirs):
            worst = int(np.abs(ours[0].astype(int) - theirs).max())
            return f"pixels differ from OpenSlide's by up to {worst} in the tile at x={x} y={y}"
        equal += 1
        if equal == TILES:
            break
    if equal:
        return ""
    return f"only OpenSlide reads its tiles ({refused})" if refused else "no tile could be compared"
