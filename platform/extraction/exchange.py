"""Feature stores from and to the ``.h5`` files of STAMP and TRIDENT."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equipoise.datasets.errors import DataError
from equipoise.datasets.features import FeatureStore, StoreSpec
from equipoise.datasets.slides.fingerprint import fingerprint, sha256
from equipoise.datasets.store.h5_files import Layout, SlideTiles, read_h5, write_h5
from equipoise.datasets.whole_files import atomic_path
from equipoise.platform.errors import ResourceError

log = logging.getLogger(__name__)


def export_features(store_path: Path, layout: Layout, out: Path) -> list[Path]:
    """Write one ``.h5`` file per slide with features.

    Parameters
    ----------
    store_path
        Folder of a store.
    layout
        Whose files.
    out
        Folder to write to; files are named by slide (``/`` becomes ``__``), and by key too where the store holds
        several versions of a slide.

    Raises
    ------
    DataError
        If there is no store, or nothing in it.
    ResourceError
        Without h5py.
    """
    need_h5py()
    store = FeatureStore.open(store_path)
    rows = [row for row in store.rows() if row["status"] == "ok" and row["shard"]]
    if not rows:
        raise DataError("no slide of the store has features", where=str(store_path))
    versions = Counter(row["slide"] for row in rows)
    written = []
    for row in rows:
        features, corners = store.read(row["key"])
        tiles = SlideTiles(
            features=features,
            x=corners[:, 0],
            y=corners[:, 1],
            encoder=store.spec.encoder,
            target_mpp=store.spec.mpp,
            tile_px=store.spec.tile_px,
            mpp=row["mpp"],
            level0_px=row["level0_px"],
        )
        name = row["slide"].replace("/", "__") + (f".{row['key']}" if versions[row["slide"]] > 1 else "")
        with atomic_path(out / f"{name}.h5") as aside:
            write_h5(aside, layout, tiles, row["slide"], (row["width"], row["height"]))
        written.append(out / f"{name}.h5")
    return written


@dataclass(frozen=True)
class Imported:
    """What an import gave.

    Attributes
    ----------
    store
        Folder of the store.
    slides, tiles
        Taken up, slides that were there before included.
    failed
        ``file: reason`` for each file that could not be taken.
    """

    store: Path
    slides: int
    tiles: int
    failed: list[str] = field(default_factory=list)


def import_features(
    folder: Path,
    layout: Layout,
    out: Path,
    encoder: str,
    mpp: float | None = None,
    tile_px: int | None = None,
) -> Imported:
    """Make a store of a folder of ``.h5`` files.

    The store says of its encoder that it was imported (``encoder_hash``): nothing here can know with which weights
    the files were made, so such features are never taken for extracted ones. Files that cannot be used become rows
    with the reason, like slides.

    Parameters
    ----------
    folder
        Searched with all folders below. Slides are named by file, by path where a name occurs twice.
    layout
        Whose files.
    out
        Folder of stores.
    encoder
        Name of the encoder.
    mpp, tile_px
        Resolution and side of the tiles, where the files do not say.

    Raises
    ------
    DataError
        If there are no files, none can be used, or they were made with different tiles or encoders.
    ResourceError
        Without h5py.
    """
    import pandas as pd

    need_h5py()
    files = sorted(folder.rglob("*.h5"))
    if not files:
        raise DataError("no .h5 files here or below", where=str(folder))
    spec = specification(files, layout, encoder, mpp, tile_px)
    table = pd.DataFrame({"slide": _names(files, folder), "path": [str(file.resolve()) for file in files]})
    table = table.assign(mpp=math.nan, fingerprint=[fingerprint(file) for file in files])
    failed = []
    with FeatureStore.create_or_open(out, spec) as store:
        keys = store.register(table)
        todo = set(store.pending(keys))
        for key, file in zip(keys, files, strict=True):
            if key in todo and (problem := take_file(store, key, file, layout, mpp, tile_px)):
                failed.append(f"{file}: {problem}")
        store.commit()
        done = [row for row in map(store.status, keys) if row["status"] == "ok"]
    return Imported(store.path, len(done), sum(row["n"] for row in done), failed)


def take_file(
    store: FeatureStore, key: str, file: Path, layout: Layout, mpp: float | None, tile_px: int | None
) -> str | None:
    """Stage and record one file under a registered key; returns what is wrong with it, if anything."""
    about = {"attempts": 1, "reader": f"{layout} h5"}
    try:
        tiles = read_h5(file, layout, mpp, tile_px)
        _must_fit(tiles, store.spec)
        about |= {
            "status": "ok",
            "n": len(tiles.x),
            "mpp": tiles.mpp,
            "mpp_source": layout,
            "tile_mpp": tiles.level0_px * tiles.mpp / tiles.tile_px,
            "level0_px": tiles.level0_px,
            "sha256": sha256(file),
        }
        store.stage(key, tiles.x, tiles.y, tiles.features, {"slide": file.stem, **about})
    except DataError as error:
        store.record([{"key": key, "status": "unreadable", "error": error.what, "attempts": 1}])
        return error.what
    store.record([{"key": key, **about}])
    return None


def specification(
    files: Sequence[Path], layout: Layout, encoder: str | None, mpp: float | None, tile_px: int | None
) -> StoreSpec:
    """Of the first file that can be read; the others must fit.

    Parameters
    ----------
    encoder
        Name of the encoder; ``None``: as the file says it, in letters that a folder may have.

    Raises
    ------
    DataError
        What is wrong with the first file, if none can be read.
    """
    problems = []
    for file in files:
        try:
            first = read_h5(file, layout, mpp, tile_px)
        except DataError as error:
            problems.append(error)
            continue
        if encoder and first.encoder and first.encoder != encoder:
            log.warning("%s says its encoder is %r; the store will say %r", file.name, first.encoder, encoder)
        return StoreSpec(
            encoder=encoder or re.sub(r"[^A-Za-z0-9._-]+", "_", first.encoder).strip("._") or "unknown",
            encoder_hash=f"imported: {first.encoder or 'unknown'}",
            dim=first.features.shape[1],
            mpp=first.target_mpp,
            tile_px=first.tile_px,
            resample="unknown",
            reader=f"{layout} h5",
        )
    raise problems[0]


def _must_fit(tiles: SlideTiles, spec: StoreSpec) -> None:
    """Refuse tiles that are not those of the other files."""
    wishes = {
        "dim": (tiles.features.shape[1], spec.dim),
        "mpp": (tiles.target_mpp, spec.mpp),
        "tile_px": (tiles.tile_px, spec.tile_px),
        "encoder": (f"imported: {tiles.encoder or 'unknown'}", spec.encoder_hash),
    }
    different = [
        f"{name}: {mine} here, {theirs} in the others"
        for name, (mine, theirs) in wishes.items()
        if mine != theirs
    ]
    if different:
        raise DataError("was made with something else: " + "; ".join(different))


def _names(files: Sequence[Path], folder: Path) -> list[str]:
    often = Counter(file.stem for file in files)
    return [
        file.stem if often[file.stem] == 1 else file.relative_to(folder).with_suffix("").as_posix()
        for file in files
    ]


def need_h5py() -> None:
    """Raise :class:`ResourceError` where h5py is not installed."""
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            "reading and writing .h5 needs h5py", fix="pip install 'equipoise[h5]'"
        ) from error
