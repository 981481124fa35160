"""JPEG tiles of a TIFF, decoded without OpenSlide: five to ten times less CPU for the same pixels.

OpenSlide spends most of its time on drawing tiles it has long decoded. Here each JPEG tile that a block of
windows touches is read once (in the order of the file, neighbours in one call), decoded once, and copied into
the windows it overlaps. Windows are resampled by the same function as OpenSlide's regions, so that the results
are equal byte by byte; where a window shrinks by a whole factor that divides the tiles, each tile is shrunk
before it is copied, which gives the same pixels for a quarter of the copying.

Baseline JPEG tiles of slides are complete streams but for their tables, which the directory holds once
(TIFF Technical Note 2). Their colour space is what the directory says, not what a decoder guesses: streams of
RGB carry no marker at all, are taken for YCbCr, and come out in plausible wrong colours.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from equipoise.datasets.slides.resample import area_resample, source_size
from equipoise.datasets.slides.tiff_directory import Directory, read_directories

#: Adobe marker with transform 0, right behind the start of a stream: "these three channels are RGB".
APP14 = bytes.fromhex("ffee000e41646f626500640000000000")

#: Sizes at which libjpeg decodes straight from the DCT coefficients, coarsest first.
REDUCTIONS = (8, 4, 2)

#: Formats whose tiles lie on a plain grid. Others place, overlap or rotate them.
_VENDORS = frozenset({"aperio", "generic-tiff", "philips"})

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_JPEG, _RGB, _YCBCR = 7, 2, 6

#: Ranges of the file this close are read in one call, up to this much at once.
_GAP, _MOST_AT_ONCE = 4096, 4 << 20

_EPSILON = 1e-6

Problems = dict[int, str]


@dataclass(frozen=True, eq=False)
class JpegLevel:
    """A pyramid level of JPEG tiles.

    Attributes
    ----------
    width, height
        In pixels, without the padding of the last tiles.
    tile
        Width and height of a tile, multiples of 16.
    columns
        Tiles in a row.
    offsets, counts
        int64 ``[tiles]``, places in the file; a count of 0 is a tile that the scanner left out.
    head
        What a stream begins with in place of its first two bytes; empty if it is complete.
    """

    width: int
    height: int
    tile: tuple[int, int]
    columns: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    head: bytes

    def decode(self, stream: bytes | memoryview, reduce: int = 1) -> NDArray[np.uint8]:
        """A tile with its padding, uint8 ``[height / reduce, width / reduce, 3]``.

        Raises
        ------
        ValueError
            If the stream is truncated, damaged or of another size: nothing is made up for missing pixels.
        """
        width, height = self.tile[0] // reduce, self.tile[1] // reduce
        if bytes(stream[:2]) != _SOI:
            raise ValueError("a tile is no JPEG stream")
        jpeg = b"".join((self.head, stream[2:])) if self.head else stream
        # Strict is the default, and stays: otherwise a truncated tile decodes to grey without a word.
        pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=height, min_width=width, min_factor=reduce)
        if pixels.shape != (height, width, 3):
            raise ValueError(f"a tile decodes to {pixels.shape}, the directory says {height} x {width}")
        return pixels


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
            self.levels = _match(self._fd, vendor, level_dimensions)
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


def _match(fd: int, vendor: str, level_dimensions: Sequence[tuple[int, int]]) -> list[JpegLevel | str]:
    """The directory of every level of OpenSlide, by size; a reason where there is none or it will not do."""
    if vendor not in _VENDORS:
        return [""] * len(level_dimensions)
    try:
        tiled = [directory for directory in read_directories(fd) if 322 in directory and 324 in directory]
        sizes = [(directory.number(256, 0), directory.number(257, 0)) for directory in tiled]
    except (ValueError, OSError) as error:
        return [str(error)] * len(level_dimensions)
    levels: list[JpegLevel | str] = []
    in_order = sorted(range(len(tiled)), key=lambda at: -sizes[at][0])
    for number, wanted in enumerate(level_dimensions):
        matches = [at for at in range(len(tiled)) if sizes[at] == tuple(wanted)]
        if not matches and vendor == "philips" and len(tiled) == len(level_dimensions):
            matches = [
                in_order[number]
            ]  # Philips' directories state sizes with the padding of the last tiles
        if len(matches) != 1:
            levels.append(f"{len(matches)} TIFF directories are of the size of level {number}")
            continue
        level = _level(tiled[matches[0]])
        if vendor == "aperio" and number and isinstance(level, JpegLevel) and not level.counts.all():
            level = (
                f"tiles left out of level {number} are drawn from the level above"  # libopenslide, aperio.c
            )
        levels.append(level)
    return levels


def _level(directory: Directory) -> JpegLevel | str:
    """A level from its directory; the reason if it is none of 8-bit RGB or YCbCr in JPEG tiles."""
    if directory.number(259, 1) != _JPEG:
        return ""  # another codec is no fault of the slide
    try:
        return _jpeg_level(directory)
    except ValueError as error:
        return str(error)


def _jpeg_level(directory: Directory) -> JpegLevel:
    width, height = directory.number(256, 0), directory.number(257, 0)
    tile = (directory.number(322, 0), directory.number(323, 0))
    if min(width, height) < 1 or min(tile) < 16 or tile[0] % 16 or tile[1] % 16:
        raise ValueError(f"{width} x {height} px in tiles of {tile[0]} x {tile[1]}")
    photometric, samples = directory.number(262, -1), directory.number(277, 1)
    bits = directory.values(258)
    if (
        photometric not in (_RGB, _YCBCR)
        or samples != 3
        or directory.number(284, 1) != 1
        or (bits != 8).any()
    ):
        raise ValueError(f"photometric {photometric} with {samples} samples of {bits.tolist()} bits")
    columns, rows = -(-width // tile[0]), -(-height // tile[1])
    offsets, counts = directory.values(324).astype(np.int64), directory.values(325).astype(np.int64)
    if len(offsets) != columns * rows or len(counts) != columns * rows:
        raise ValueError(f"{len(offsets)} tiles in the directory, {columns} x {rows} in the picture")
    if (offsets < 0).any() or (counts < 0).any():
        raise ValueError("offsets of tiles beyond 2^63")
    tables = directory.data(347)
    if tables and not (tables.startswith(_SOI) and tables.endswith(_EOI)):
        raise ValueError("JPEGTables is no JPEG stream")
    return JpegLevel(width, height, tile, columns, offsets, counts, _head(tables, photometric == _RGB))


def _head(tables: bytes, rgb: bool) -> bytes:
    """Start of stream, colour space if it has to be said, and the shared tables."""
    if not tables and not rgb:
        return b""
    return _SOI + (APP14 if rgb else b"") + tables[2:-2]
