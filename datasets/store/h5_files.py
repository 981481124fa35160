"""Tile features in the ``.h5`` layouts of STAMP and TRIDENT: one file per slide.

STAMP (https://github.com/KatherLab/STAMP): ``feats [N, D]``, ``coords [N, 2]`` in um, attributes of the file.
TRIDENT (https://github.com/mahmoodlab/TRIDENT): ``features [N, D]``, ``coords [N, 2]`` in level-0 pixels, attributes
of ``coords``. STAMP's files do not say what a level-0 pixel is, TRIDENT's only the magnification; what is written
here adds ``level0_mpp`` and ``target_mpp``, which both programs ignore, so that nothing is lost on the way back.

``h5py`` is imported inside functions: it is an optional part of the installation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError

Layout = Literal["stamp", "trident"]

#: The release of STAMP since which this layout holds; STAMP refuses files of releases newer than itself.
_STAMP_VERSION = "2.1.0"

#: Name of the features → layout.
_FEATURES: dict[str, Layout] = {"feats": "stamp", "features": "trident"}

#: um per pixel at a magnification of 1: 0.25 at 40x.
_UM_AT_1X = 10.0
_MAGNIFICATIONS = (1.25, 2.5, 5, 10, 20, 40, 60, 80)


@dataclass(frozen=True, eq=False)
class SlideTiles:
    """The tiles of one slide, as files and stores know them.

    Attributes
    ----------
    features
        ``[N, D]``.
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
    """

    features: NDArray[Any]
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    encoder: str
    target_mpp: float
    tile_px: int
    mpp: float
    level0_px: float


def layout_of(path: Path) -> Layout:
    """Whose file it is, by the name of its features.

    Raises
    ------
    DataError
        If it cannot be read, or has neither layout.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = set(file)
    except OSError as error:
        raise DataError(f"cannot be read as HDF5: {error}", where=str(path)) from error
    for features, layout in _FEATURES.items():
        if {features, "coords"} <= names:
            return layout
    raise DataError(
        f"holds {', '.join(sorted(names)) or 'nothing'}, neither feats (STAMP) nor features (TRIDENT) and coords",
        where=str(path),
    )


def read_h5(path: Path, layout: Layout, mpp: float | None = None, tile_px: int | None = None) -> SlideTiles:
    """Read one file.

    Parameters
    ----------
    path
        The file.
    layout
        Whose.
    mpp, tile_px
        Resolution (um/px) and side (px) of the tiles, for files that do not say.

    Raises
    ------
    DataError
        If the file is damaged, of another layout, or does not say what must be known.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = _names(file, path, layout)
            parts = [cast(h5py.Dataset, file[name]) for name in names]
            features, coords = (np.asarray(part[()]) for part in parts)
            attributes = {**file.attrs, **parts[0].attrs, **parts[1].attrs}
    except OSError as error:
        raise DataError(f"cannot be read as HDF5: {error}", where=str(path)) from error
    features, coords = features.squeeze(0) if features.ndim == 3 else features, coords.reshape(-1, 2)
    if features.ndim != 2 or len(features) != len(coords):
        raise DataError(f"features {features.shape} and coords {coords.shape} do not fit", where=str(path))
    kind = _text(attributes.get("feat_type", "tile"))
    if kind != "tile":
        raise DataError(f"holds features of type {kind!r}, not of tiles", where=str(path))
    try:
        scale = (
            _stamp_scale(attributes, mpp, tile_px)
            if layout == "stamp"
            else _trident_scale(attributes, mpp, tile_px)
        )
    except KeyError as error:
        raise DataError(
            f"does not say {error.args[0]}", where=str(path), fix="state resolution and side: --mpp and --px"
        ) from error
    corners = coords.astype(np.float64) / (scale["mpp"] if layout == "stamp" else 1.0)
    x, y = np.rint(corners).astype(np.int32).T
    encoder = _text(attributes.get("extractor", attributes.get("encoder", "")))
    return SlideTiles(features, np.ascontiguousarray(x), np.ascontiguousarray(y), encoder, **scale)


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


def _names(file: Mapping[str, Any], path: Path, layout: Layout) -> tuple[str, str]:
    """Names of the features' and the coordinates' data sets."""
    wanted = "feats" if layout == "stamp" else "features"
    other = "features" if layout == "stamp" else "feats"
    if wanted in file and "coords" in file:
        return wanted, "coords"
    hint = f"it looks like the other layout: --format {'trident' if layout == 'stamp' else 'stamp'}"
    raise DataError(
        f"holds {', '.join(sorted(file)) or 'nothing'}, not {wanted} and coords",
        where=str(path),
        fix=hint if other in file else None,
    )


def _stamp_scale(about: Mapping[str, Any], mpp: float | None, px: int | None) -> dict[str, Any]:
    """Resolution and sides; without a word on level-0 pixels, those of the tiles are taken for them."""
    unit = _text(about.get("unit", "um" if "tile_size_um" in about else ""))
    if unit != "um":
        raise KeyError("that its coordinates are in um (a file of STAMP before 2.0: convert it with STAMP)")
    side_px = _first(about, "tile_size_px", given=px)
    side_um = _first(about, "tile_size_um", "tile_size", given=mpp and mpp * side_px)
    tile_mpp = side_um / side_px
    level0 = float(about.get("level0_mpp", tile_mpp))
    return {
        "target_mpp": float(about.get("target_mpp", mpp or round(tile_mpp, 9))),
        "tile_px": round(side_px),
        "mpp": level0,
        "level0_px": side_um / level0,
    }


def _trident_scale(about: Mapping[str, Any], mpp: float | None, px: int | None) -> dict[str, Any]:
    """Resolution and sides; um follow from the magnification unless the file says more."""
    side_px = _first(about, "patch_size", given=px)
    wanted = _first(about, "target_magnification", given=mpp and _UM_AT_1X / mpp)
    target = float(about.get("target_mpp", _UM_AT_1X / wanted))
    if "level0_mpp" in about:
        level0 = float(about["level0_mpp"])
    else:
        level0 = _UM_AT_1X / _first(about, "level0_magnification", given=None)
    side = float(about.get("level0_side", about.get("patch_size_level0", side_px * target / level0)))
    return {"target_mpp": target, "tile_px": round(side_px), "mpp": level0, "level0_px": side}


def _first(about: Mapping[str, Any], *names: str, given: float | None) -> float:
    """The first attribute that is there, else what the user stated."""
    for name in names:
        if name in about and float(about[name]) > 0:
            return float(about[name])
    if given:
        return float(given)
    raise KeyError(" or ".join(names))


def _magnification(mpp: float) -> float | int:
    """The objective that is called so: 40 for 0.23 to 0.27 um/px."""
    nearest = min(_MAGNIFICATIONS, key=lambda magnification: abs(np.log(_UM_AT_1X / mpp / magnification)))
    return int(nearest) if nearest == int(nearest) else nearest


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
