"""Tile features in the ``.h5`` layouts of STAMP and TRIDENT: one file per slide.

STAMP (https://github.com/KatherLab/STAMP): ``feats [N, D]``, ``coords [N, 2]`` in um, attributes of the file.
TRIDENT (https://github.com/mahmoodlab/TRIDENT): ``features [N, D]``, ``coords [N, 2]`` in level-0 pixels, attributes
of ``coords``. STAMP's files do not say what a level-0 pixel is, TRIDENT's only the magnification; what is written
here adds ``level0_mpp`` and ``target_mpp``, which both programs ignore, so that nothing is lost on the way back.

Files of others are opened by :mod:`equipoise.datasets.store.h5_process`. ``h5py`` is imported inside functions: it is
an optional part of the installation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.h5_process import H5Header, H5Reader, Layout

__all__ = ["Layout", "SlideTiles", "TileOrigin", "grid_step", "read_h5", "read_origin", "write_h5"]

#: The release of STAMP since which this layout holds; STAMP refuses files of releases newer than itself.
_STAMP_VERSION = "2.1.0"

#: What a file may state: um per pixel, side of a tile in pixels and in level-0 pixels, level-0 pixels of a slide (a
#: metre at 0.1 um/px).
MPP_RANGE, PX_RANGE, SIDE_RANGE, MAX_COORDINATE = (0.05, 50.0), (1, 16_384), (1, 1_000_000), 1e7

#: um per pixel at a magnification of 1: 0.25 at 40x.
_UM_AT_1X = 10.0
_MAGNIFICATIONS = (1.25, 2.5, 5, 10, 20, 40, 60, 80)


@dataclass(frozen=True, eq=False)
class SlideTiles:
    """The tiles of one slide, as files and stores know them.

    Attributes
    ----------
    features
        ``[N, D]``; read from a file: float16, infinite where that cannot hold a number.
    x, y
        int32 ``[N]``, top-left corners in level-0 pixels.
    encoder
        What made the features, as the file says it; empty if it does not.
    target_mpp, tile_px
        Resolution asked for in um/px, and side in pixels.
    mpp
        um per level-0 pixel.
    level0_px
        Side of a tile in level-0 pixels.
    layout
        Of the file that it was read from; empty for tiles to be written.
    """

    features: NDArray[Any]
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    encoder: str
    target_mpp: float
    tile_px: int
    mpp: float
    level0_px: float
    layout: Layout | Literal[""] = ""


@dataclass(frozen=True)
class TileOrigin:
    """What the tiles of a file are, as far as it must be the same in all files of a store.

    Attributes
    ----------
    encoder, target_mpp, tile_px
        As in :class:`SlideTiles`.
    dim
        Length of a vector.
    layout
        Whose file it is.
    """

    encoder: str
    dim: int
    target_mpp: float
    tile_px: int
    layout: Layout


def read_origin(
    reader: H5Reader,
    path: Path,
    layout: Layout | Literal["auto"] = "auto",
    mpp: float | None = None,
    tile_px: int | None = None,
) -> TileOrigin:
    """What made the tiles of a file, without reading a feature; parameters and errors as :func:`read_h5`."""
    header = reader.header(path, layout)
    return _origin(header, path, mpp, tile_px)


def read_h5(
    reader: H5Reader,
    path: Path,
    layout: Layout | Literal["auto"] = "auto",
    mpp: float | None = None,
    tile_px: int | None = None,
) -> SlideTiles:
    """Read one file.

    Parameters
    ----------
    reader
        Opens it.
    path
        The file.
    layout
        Whose; ``auto``: whose it is, by the name of its features.
    mpp, tile_px
        Resolution (um/px) and side (px) of the tiles, for files that do not say.

    Raises
    ------
    DataError
        If the file is damaged, of another layout, does not say what must be known, or says what cannot be true.
    """
    header, features, coords = reader.values(path, layout)
    origin = _origin(header, path, mpp, tile_px)
    about = _About(header.attributes, path)
    if origin.layout == "stamp":
        level0 = about.number("level0_mpp") or _stamp_side(about, mpp, tile_px) / origin.tile_px
        side = _stamp_side(about, mpp, tile_px) / level0
        corners = coords / level0
    else:
        level0, side = _trident_level0(about, origin, coords)
        corners = coords
    _require("um per level-0 pixel", level0, MPP_RANGE, path)
    _require("the side of a tile in level-0 pixels", side, SIDE_RANGE, path)
    stated, extent = origin.target_mpp * origin.tile_px, side * level0
    if not 0.5 < extent / stated < 2:
        raise DataError(
            f"contradicts itself: {origin.tile_px} px at {origin.target_mpp:g} um/px are {stated:g} um, "
            f"{side:g} px at {level0:g} um/px are {extent:g} um",
            where=str(path),
        )
    x, y = _corners(corners, side, path)
    return SlideTiles(
        features, x, y, origin.encoder, origin.target_mpp, origin.tile_px, level0, side, origin.layout
    )


def write_h5(path: Path, layout: Layout, tiles: SlideTiles, name: str, size: tuple[int, int]) -> None:
    """Write one file; the caller renames.

    Parameters
    ----------
    path, layout
        Where, and whose layout.
    tiles
        Content.
    name
        Of the slide.
    size
        Width and height of the slide in level-0 pixels.
    """
    import h5py

    corners = np.stack([tiles.x, tiles.y], axis=1)
    extra = {"level0_mpp": tiles.mpp, "target_mpp": tiles.target_mpp}
    with h5py.File(path, "w") as file:
        if layout == "stamp":
            file["feats"] = tiles.features
            file["coords"] = (corners * tiles.mpp).astype(np.float32)
            file.attrs.update(
                stamp_version=_STAMP_VERSION,
                extractor=tiles.encoder,
                unit="um",
                tile_size_um=tiles.level0_px * tiles.mpp,
                tile_size_px=tiles.tile_px,
                code_hash="equipoise",
                feat_type="tile",
                **extra,
            )
        else:
            file["features"] = tiles.features
            file["features"].attrs["encoder"] = tiles.encoder
            file["coords"] = corners.astype(np.int64)
            file["coords"].attrs.update(
                patch_size=tiles.tile_px,
                patch_size_level0=round(tiles.level0_px),
                level0_magnification=_magnification(tiles.mpp),
                target_magnification=_magnification(tiles.target_mpp),
                overlap=0,
                name=name,
                savetodir="",
                level0_width=size[0],
                level0_height=size[1],
                level0_side=tiles.level0_px,
                **extra,
            )


class _About:
    """The attributes of a file, read as what they must be."""

    def __init__(self, attributes: Mapping[str, Any], path: Path) -> None:
        self._attributes, self._path = attributes, path

    def number(self, name: str) -> float | None:
        """A positive number; ``None`` where the file has no such attribute, or 0 for "not known"."""
        value = self._attributes.get(name)
        if value is None or value == 0:
            return None
        number = math.nan
        with suppress(ValueError):
            number = float(value)
        if not 0 < number < math.inf:
            raise DataError(f"attribute {name} is {value!r}, not a positive number", where=str(self._path))
        return number

    def first(self, *names: str, given: float | None) -> float:
        """The first attribute that is there, else what the user stated."""
        for name in names:
            if (value := self.number(name)) is not None:
                return value
        if given:
            return float(given)
        raise self.lacks(" or ".join(names))

    def text(self, name: str, default: str = "") -> str:
        return str(self._attributes.get(name, default))

    def lacks(self, what: str) -> DataError:
        return DataError(
            f"does not say {what}",
            where=str(self._path),
            fix="state resolution and side of the tiles: mpp and tile_px under features.imported, or --mpp and --px",
        )


def _origin(header: H5Header, path: Path, mpp: float | None, tile_px: int | None) -> TileOrigin:
    about = _About(header.attributes, path)
    if (kind := about.text("feat_type", "tile")) != "tile":
        raise DataError(f"holds features of type {kind!r}, not of tiles", where=str(path))
    if header.layout == "stamp":
        if about.text("unit", "um" if about.number("tile_size_um") else "") != "um":
            raise about.lacks(
                "that its coordinates are in um (a file of STAMP before 2.0: convert it with STAMP)"
            )
        px = about.first("tile_size_px", given=tile_px)
        target = about.number("target_mpp") or mpp or round(_stamp_side(about, mpp, tile_px) / px, 9)
    else:
        px = about.first("patch_size", given=tile_px)
        wanted = about.number("target_mpp")
        target = wanted or _UM_AT_1X / about.first("target_magnification", given=mpp and _UM_AT_1X / mpp)
    _require("um per pixel of the tiles", target, MPP_RANGE, path)
    _require("the side of a tile in pixels", px, PX_RANGE, path)
    encoder = about.text("extractor") or about.text("encoder")
    return TileOrigin(encoder, header.dim, float(target), round(px), header.layout)


def _stamp_side(about: _About, mpp: float | None, px: int | None) -> float:
    """Side of a tile in um."""
    side_px = about.first("tile_size_px", given=px)
    return about.first("tile_size_um", "tile_size", given=mpp and mpp * side_px)


def _trident_level0(about: _About, origin: TileOrigin, coords: NDArray[np.float64]) -> tuple[float, float]:
    """um per level-0 pixel, and side of a tile in them.

    A file without a word on level 0 (CLAM, GigaPath) still shows its grid: tiles that do not overlap are one side
    apart. Without a grid, tile pixels stand in for level-0 pixels.
    """
    level0, magnification = about.number("level0_mpp"), about.number("level0_magnification")
    side = about.number("level0_side") or about.number("patch_size_level0")
    extent = origin.target_mpp * origin.tile_px
    if level0 is None and magnification is not None:
        level0 = _UM_AT_1X / magnification
    if level0 is None:
        side = side or grid_step(coords) or float(origin.tile_px)
        level0 = extent / side
    return level0, side or extent / level0


def grid_step(coords: NDArray[np.float64]) -> float | None:
    """Distance between neighbouring corners ``[N, 2]`` of a regular grid, in its units; ``None`` if there is no grid.

    The smallest distance between two columns or rows, if nine of ten distances in both directions are multiples of it.
    """
    if len(coords) < 2 or not np.isfinite(coords).all():
        return None
    gaps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    if not len(gaps):
        return None
    step = float(gaps.min())
    remainder = np.abs(gaps / step - np.rint(gaps / step))
    return step if np.mean(remainder < 0.01) >= 0.9 else None


def _corners(
    corners: NDArray[np.float64], side: float, path: Path
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Corners ``[N, 2]`` as int32 x and y, all of which lie where a slide can be."""
    possible = np.isfinite(corners) & (corners > -side) & (corners < MAX_COORDINATE)
    if not possible.all():
        wrong = corners[~possible.all(axis=1)]
        raise DataError(
            f"coords of {len(wrong)} of {len(corners)} tiles cannot be level-0 pixels of a slide, the first: "
            f"({wrong[0][0]:g}, {wrong[0][1]:g})",
            where=str(path),
        )
    x, y = np.rint(corners).astype(np.int32).T
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def _require(what: str, value: float, accepted: tuple[float, float], path: Path) -> None:
    if not accepted[0] <= value <= accepted[1]:
        raise DataError(f"{what}: {value:g} is outside {accepted[0]:g}-{accepted[1]:g}", where=str(path))


def _magnification(mpp: float) -> float | int:
    """The objective that is called so: 40 for 0.23 to 0.27 um/px."""
    nearest = min(_MAGNIFICATIONS, key=lambda magnification: abs(np.log(_UM_AT_1X / mpp / magnification)))
    return int(nearest) if nearest == int(nearest) else nearest
