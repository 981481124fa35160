"""Reading a slide: exact regions at exact resolutions, composited on white.

OpenSlide opens every slide, says what it is and can read all of it. Tiles of JPEG in TIFF are decoded without it
(:mod:`equipoise.datasets.slides.jpeg_tiff`), after three tiles of the level have come out equal both ways.

One :class:`SlideReader` serves several threads. Each thread keeps its own OpenSlide handle, because a single
decoding error makes a handle useless for good (every later call fails, even for good tiles): the thread that
met the error drops its handle and opens a new one, the others are not disturbed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import openslide
from numpy.typing import NDArray

from equipoise.datasets.remote.addresses import is_remote
from equipoise.datasets.remote.slide_files import acquire_slide
from equipoise.datasets.slides.dicom import PIXEL_FIX, dicom_slide, is_dicom_file, require_dicom_level
from equipoise.datasets.slides.jpeg_tiff import JpegLevel, JpegTiff, self_check
from equipoise.datasets.slides.mpp import Sampling, choose_sampling, slide_mpp
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.resample import area_resample, source_size
from equipoise.datasets.slides.tiff_directory import sample_problem

#: Ways to bring pixels to a resolution. ``dct`` is ``area`` wherever a slide has no JPEG tiles to decode smaller.
RESAMPLINGS = ("area", "dct")

#: Source pixels read at once for a thumbnail: bounds memory on slides without a pyramid.
_THUMBNAIL_SOURCE = 2048


def open_slide(
    path: str | Path,
    mpp_override: float | None = None,
    study_mpp: float | None = None,
    fast: bool = True,
) -> SlideReader:
    """Open a slide and determine its pixel size.

    Parameters
    ----------
    path
        File, or the folder of a DICOM slide; an address (``s3://…``) is copied to this machine first.
    mpp_override
        Pixel size from the slides table (um/px); ``None`` or NaN if absent.
    study_mpp
        Pixel size from the study, used where the table has none.
    fast
        Whether JPEG tiles may be decoded without OpenSlide.

    Raises
    ------
    SlideProblem
        ``missing``, ``not_a_slide``, ``unreadable``, ``no_mpp`` or ``mpp_out_of_range``.
    """
    return SlideReader(path, mpp_override, study_mpp, fast)


class SlideReader:
    """An open slide; see :func:`open_slide`. Use as a context manager, or call :meth:`close`.

    Attributes
    ----------
    dimensions
        Width and height at level 0.
    level_dimensions, level_downsamples
        The pyramid as OpenSlide states it.
    mpp, mpp_source
        um per level-0 pixel and where the number comes from.
    vendor
        OpenSlide's name of the format.
    bounds
        Left, top, width and height of the scanned area in level-0 pixels, where the format states it (MIRAX,
        Leica SCN). Coordinates of this reader count from the corner of the whole slide; viewers such as QuPath cut
        the slide to this area and count from its corner.
    remarks
        What the reader found out and went around, a sentence each.
    """

    def __init__(
        self, path: str | Path, mpp_override: float | None, study_mpp: float | None, fast: bool = True
    ) -> None:
        self.path = path
        self._copy = acquire_slide(path) if isinstance(path, str) and is_remote(path) else None
        self._local = threading.local()
        self._lock = threading.Lock()
        self._handles: dict[openslide.OpenSlide, threading.Lock] = {}
        self._closed = False
        self._jpeg: JpegTiff | None = None
        self._checking = threading.Lock()
        #: Per level that was asked for: empty if its tiles are decoded here, else why they are not.
        self._refused: dict[int, str] = {}
        try:
            self._file, self.remarks = slide_file(Path(path) if self._copy is None else self._copy.path)
            handle, _ = self._handle()
            if why := sample_problem(self._file):
                raise SlideProblem("unreadable", why, where=str(path), fix=PIXEL_FIX)
            properties = dict(handle.properties)
            self.dimensions: tuple[int, int] = handle.dimensions
            self.level_dimensions: tuple[tuple[int, int], ...] = tuple(handle.level_dimensions)
            self.level_downsamples: tuple[float, ...] = tuple(handle.level_downsamples)
            self.vendor = properties.get("openslide.vendor", "")
            self.bounds = scanned_area(properties, self.dimensions)
            resolved = slide_mpp(properties, mpp_override, study_mpp)
            if fast:
                self._jpeg = JpegTiff(self._file, self.vendor, self.level_dimensions)
        except SlideProblem as problem:
            self.close()
            problem.where = problem.where if self._copy is None and problem.where else str(path)
            raise
        except (openslide.OpenSlideError, OSError) as error:
            self.close()
            raise SlideProblem("unreadable", str(error), where=str(path)) from error
        self.mpp = resolved.value
        self.mpp_source = resolved.source

    @property
    def origin(self) -> tuple[int, int]:
        """Corner of the scanned area in level-0 pixels, from which QuPath counts; (0, 0) where none is stated."""
        return (0, 0) if self.bounds is None else self.bounds[:2]

    @property
    def kind(self) -> str:
        """Which code read the pixels so far: ``jpeg-tiff``, or ``openslide`` with the reason if there is one."""
        reasons = [
            f"level {level}: {why}" for level, why in sorted(self._refused.items()) if why not in ("", "-")
        ]
        if reasons:
            return f"openslide ({'; '.join(reasons)})"
        return "jpeg-tiff" if "" in self._refused.values() else "openslide"

    def sampling(self, target: float, resample: str = "area") -> Sampling:
        """How ``target`` um/px is read from this slide; raises ``upsampling`` if it cannot be."""
        plain = choose_sampling(self.mpp, self.level_downsamples, target)
        if resample != "dct" or plain.native or self._fast_level(plain.level) is None:
            return plain
        return choose_sampling(self.mpp, self.level_downsamples, target, (plain.level,))

    def source_of(self, side: float, px: int) -> tuple[int, float]:
        """The level that squares of ``side`` level-0 pixels are read from, and its pixels per output pixel."""
        level, scale = self._source((side, side), (px, px), "area")
        return level, scale[0]

    def jpeg_tile(self, level: int) -> tuple[int, int] | None:
        """Width and height of the JPEG tiles of a level, ``None`` if it has none: what blocks are aligned to."""
        jpeg_level = self._jpeg.level(level) if self._jpeg else None
        return jpeg_level.tile if jpeg_level else None

    def read(
        self, x0: int, y0: int, w0: float, h0: float, out_px: tuple[int, int], resample: str = "area"
    ) -> NDArray[np.uint8]:
        """Read a region at an exact scale.

        Parameters
        ----------
        x0, y0
            Top-left corner in level-0 pixels.
        w0, h0
            Size in level-0 pixels; may be fractional.
        out_px
            Width and height of the result; ``w0 / width`` level-0 pixels make one output pixel.
        resample
            ``area``: average over the exact footprint. ``dct``: JPEG tiles are decoded at 1/2, 1/4 or 1/8 where
            the scale allows, then ``area``. Nothing is resampled where the scale is 1.

        Returns
        -------
        uint8 ``[height, width, 3]``, RGB on white where the slide has no pixels.

        Raises
        ------
        SlideProblem
            ``unreadable`` if the pixels cannot be decoded (the reader stays usable), ``upsampling`` if the
            region is smaller than the output.
        ValueError
            For an unknown ``resample``.
        """
        level, scale = self._source((w0, h0), out_px, resample)
        return self._read_from(level, x0, y0, out_px, scale, resample)

    def _read_from(
        self, level: int, x0: int, y0: int, out_px: tuple[int, int], scale: tuple[float, float], resample: str
    ) -> NDArray[np.uint8]:
        """As :meth:`read`, from a given level and its pixels per output pixel."""
        fast = self._read_fast(np.array([x0]), np.array([y0]), level, out_px, scale, resample)
        if fast is None:
            pixels = self._read_level(x0, y0, level, source_size(out_px, scale))
            return area_resample(pixels, out_px, scale)
        windows, problems = fast
        if problems:
            raise SlideProblem("unreadable", problems[0], where=self._location(x0, y0, level))
        return windows[0]

    def read_many(
        self,
        x0: NDArray[np.int32],
        y0: NDArray[np.int32],
        side: float,
        px: int,
        resample: str = "area",
    ) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """Read squares that lie close together: what they share is decoded once.

        Parameters
        ----------
        x0, y0
            int ``[N]``, top-left corners in level-0 pixels.
        side, px
            Side in level-0 and in output pixels.
        resample
            As in :meth:`read`.

        Returns
        -------
        pixels, problems
            uint8 ``[N, px, px, 3]``, the same as :meth:`read` of each; and a line per square that cannot be
            read, by its index (its pixels mean nothing).
        """
        level, scale = self._source((side, side), (px, px), resample)
        fast = self._read_fast(x0, y0, level, (px, px), scale, resample)
        if fast is not None:
            pixels, why = fast
            return pixels, {
                at: SlideProblem(
                    "unreadable", text, where=self._location(int(x0[at]), int(y0[at]), level)
                ).line
                for at, text in why.items()
            }
        pixels = np.empty((len(x0), px, px, 3), np.uint8)
        problems: dict[int, str] = {}
        for at in range(len(x0)):
            try:
                pixels[at] = self.read(int(x0[at]), int(y0[at]), side, side, (px, px), resample)
            except SlideProblem as problem:
                problems[at] = problem.line
        return pixels, problems

    def thumbnail(self, mpp: float) -> tuple[NDArray[np.uint8], float]:
        """The whole slide at about ``mpp`` um/px (the slide's own where that is coarser).

        The result covers the slide exactly, so its pixels may deviate from ``mpp`` by a fraction of one pixel
        in the whole width. Read in pieces: memory is bounded by the thumbnail, regardless of the pyramid.

        Returns
        -------
        uint8 ``[h, w, 3]`` and its um/px.
        """
        width0, height0 = self.dimensions
        target = max(mpp, self.mpp)
        # Rounding down keeps the thumbnail's pixels at least as large as level-0 pixels.
        width = max(1, math.floor(width0 * self.mpp / target + 1e-6))
        height = max(1, math.floor(height0 * self.mpp / target + 1e-6))
        dx, dy = width0 / width, height0 / height
        levels = sorted(
            (level for level, d in enumerate(self.level_downsamples) if d <= min(dx, dy) * (1 + 1e-6)),
            key=lambda level: -self.level_downsamples[level],
        )
        for at, level in enumerate(levels):
            try:
                return self._thumbnail(level, (width, height), (dx, dy)), dx * self.mpp
            except SlideProblem as problem:
                if problem.status != "unreadable" or at + 1 == len(levels):
                    raise
                other = f"the overview was made from level {levels[at + 1]}"
                remark = f"level {level} cannot be read ({problem.what}), {other}"
                if remark not in self.remarks:
                    self.remarks.append(remark)
        raise AssertionError("level 0 is never coarser than the thumbnail")

    def _thumbnail(self, level: int, size: tuple[int, int], scale: tuple[float, float]) -> NDArray[np.uint8]:
        """The whole slide at ``size`` (width, height) from one level; ``scale`` is level-0 pixels per pixel."""
        (width, height), (dx, dy) = size, scale
        step = max(1, int(_THUMBNAIL_SOURCE * self.level_downsamples[level] / max(dx, dy)))
        out = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, step):
            for left in range(0, width, step):
                h, w = min(step, height - top), min(step, width - left)
                x, y = math.floor(left * dx), math.floor(top * dy)
                out[top : top + h, left : left + w] = self._read_from(
                    level, x, y, (w, h), self._scale((w * dx, h * dy), (w, h), level), "area"
                )
        return out

    def __repr__(self) -> str:
        width, height = self.dimensions
        return (
            f"<SlideReader {Path(self.path).name}: {width} x {height} px, {self.mpp:g} um/px, {self.vendor}>"
        )

    def close(self) -> None:
        """Close the handles of all threads, after the reads that are under way."""
        if self._jpeg:
            self._jpeg.close()
        with self._lock:
            self._closed = True
            for handle, busy in self._handles.items():
                with busy:  # closing under a read would take the memory from under it
                    handle.close()
            self._handles.clear()
        if self._copy is not None:
            self._copy.release()

    def __enter__(self) -> SlideReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _source(
        self, size: tuple[float, float], out_px: tuple[int, int], resample: str
    ) -> tuple[int, tuple[float, float]]:
        """The coarsest level that is not coarser than the output, and its pixels per output pixel."""
        if resample not in RESAMPLINGS:
            raise ValueError(f"unknown resampling {resample!r}; known: {', '.join(RESAMPLINGS)}")
        downsample = (size[0] / out_px[0], size[1] / out_px[1])
        fits = [d for d in self.level_downsamples if d <= min(downsample) * (1 + 1e-6)]
        if not fits:
            raise SlideProblem(
                "upsampling",
                f"{size[0]:g} x {size[1]:g} px of level 0 cannot fill {out_px[0]} x {out_px[1]} px",
                where=str(self.path),
            )
        level = self.level_downsamples.index(max(fits))
        return level, self._scale(size, out_px, level)

    def _scale(self, size: tuple[float, float], out_px: tuple[int, int], level: int) -> tuple[float, float]:
        """Pixels of a level per output pixel, where ``size`` level-0 pixels become ``out_px``."""
        downsample = self.level_downsamples[level]
        return size[0] / out_px[0] / downsample, size[1] / out_px[1] / downsample

    def _read_fast(
        self,
        x0: NDArray[np.integer],
        y0: NDArray[np.integer],
        level: int,
        out_px: tuple[int, int],
        scale: tuple[float, float],
        resample: str,
    ) -> tuple[NDArray[np.uint8], dict[int, str]] | None:
        """Windows without OpenSlide, with reasons for unreadable ones; ``None`` where it has to do the work."""
        downsample = round(self.level_downsamples[level])
        if (x0 % downsample).any() or (y0 % downsample).any():
            return None  # between pixels of the level: OpenSlide interpolates
        jpeg = self._fast_level(level)
        if jpeg is None or self._jpeg is None:
            return None
        x, y = x0.astype(np.int64) // downsample, y0.astype(np.int64) // downsample
        return self._jpeg.resampled(jpeg, x, y, out_px, scale, resample)

    def _fast_level(self, level: int) -> JpegLevel | None:
        """A level whose tiles have been found equal to OpenSlide's; checked when first asked for."""
        if self._jpeg is None:
            return None
        with self._checking:
            if level not in self._refused:
                self._refused[level] = self._check(self._jpeg, level)
        return None if self._refused[level] else self._jpeg.level(level)

    def _check(self, tiff: JpegTiff, level: int) -> str:
        """Why a level must be read through OpenSlide: ``-`` if it is not made of JPEG tiles, empty if it need not."""
        jpeg_level = tiff.levels[level]
        if isinstance(jpeg_level, str):
            return jpeg_level or "-"
        downsample = self.level_downsamples[level]
        if downsample != round(downsample):
            return f"lies between pixels of level 0, {downsample:.6g} to one"
        return self_check(
            tiff, jpeg_level, downsample, lambda x, y, size: self._read_level(x, y, level, size)
        )

    def _location(self, x0: int, y0: int, level: int) -> str:
        return f"{self.path} x={x0} y={y0} level={level}"

    def _read_level(self, x0: int, y0: int, level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        handle, busy = self._handle()
        try:
            # OpenSlide places the corner exactly, between pixels of the level where the downsample is a fraction.
            with busy:
                region = handle.read_region((x0, y0), level, size)
        except openslide.OpenSlideError as error:
            self._drop(handle)
            raise SlideProblem("unreadable", f"{error}", where=self._location(x0, y0, level)) from error
        return on_white(np.asarray(region))

    def _handle(self) -> tuple[openslide.OpenSlide, threading.Lock]:
        """This thread's handle, opened if need be, and the lock that is held while it reads."""
        handle: openslide.OpenSlide | None = getattr(self._local, "handle", None)
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path} is closed")
            if handle in self._handles:
                return handle, self._handles[handle]
        opened, busy = open_handle(self._file), threading.Lock()
        with self._lock:
            self._handles[opened] = busy
        self._local.handle = opened
        return opened, busy

    def _drop(self, handle: openslide.OpenSlide) -> None:
        """Forget a handle of this thread: OpenSlide latches its first error for every later call."""
        with self._lock:
            if self._handles.pop(handle, None) is not None:
                handle.close()


def scanned_area(
    properties: Mapping[str, str], dimensions: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of the scanned area by OpenSlide's properties; None where they state none.

    Parameters
    ----------
    properties
        Of an open slide.
    dimensions
        Width and height at level 0; an area that is not inside is not believed.
    """
    try:
        x, y, width, height = (
            int(properties[f"openslide.bounds-{part}"]) for part in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError):
        return None
    inside = 0 <= x < x + width <= dimensions[0] and 0 <= y < y + height <= dimensions[1]
    return (x, y, width, height) if inside else None


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite ``[H, W, 4]`` on white: pixels outside a slide are transparent black, not black tissue."""
    alpha = rgba[..., 3]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    a = alpha[..., None].astype(np.uint16)
    return ((rgba[..., :3].astype(np.uint16) * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def slide_file(path: Path) -> tuple[Path, list[str]]:
    """The file that OpenSlide opens, and remarks; of a DICOM folder, the largest level of the slide in it.

    Raises
    ------
    SlideProblem
        For a folder without a slide or with several, and a DICOM file that is no level of one.
    """
    if path.is_dir():
        return dicom_slide(path)
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise SlideProblem("not_a_slide", "it is neither a file nor a folder", where=str(path))
    if is_dicom_file(path):
        require_dicom_level(path)
    return path, []


def open_handle(file: Path) -> openslide.OpenSlide:
    """A handle of OpenSlide; raises :class:`SlideProblem` with what is wrong with the file."""
    if not file.exists():
        raise SlideProblem("missing", "no such file", where=str(file))
    try:
        return openslide.OpenSlide(str(file))
    except openslide.OpenSlideUnsupportedFormatError as error:
        status, reason = _why_unsupported(file)
        raise SlideProblem(status, reason, where=str(file)) from error
    except openslide.OpenSlideError as error:
        raise SlideProblem("unreadable", str(error), where=str(file)) from error


def _why_unsupported(file: Path) -> tuple[str, str]:
    """Tell a truncated TIFF from a plain image and from other files: OpenSlide says the same of all three."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        return "unreadable", str(error)
    if size == 0:
        return "unreadable", "the file is empty"
    order = {b"II": "little", b"MM": "big"}.get(head[:2])
    if order is None or len(head) < 16:
        return "not_a_slide", "OpenSlide does not know this format"
    version = int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
    if version not in (42, 43):
        return "not_a_slide", "OpenSlide does not know this format"
    at = head[4:8] if version == 42 else head[8:16]
    directory = int.from_bytes(at, order)  # type: ignore[arg-type]
    if directory >= size:
        return (
            "unreadable",
            f"truncated: the TIFF directory should be at byte {directory}, the file ends at {size}",
        )
    return (
        "not_a_slide",
        "a TIFF, but none of the whole-slide layouts that OpenSlide knows (tiled, with levels)",
    )
