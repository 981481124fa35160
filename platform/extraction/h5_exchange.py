"""Import and export of feature stores as ``.h5`` files of STAMP and TRIDENT."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.errors import DataError
from equipoise.datasets.slides.fingerprint import fingerprint, sha256
from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec
from equipoise.datasets.store.h5_files import Layout, SlideTiles, read_h5, write_h5
from equipoise.platform.errors import ResourceError

log = logging.getLogger(__name__)


def export_features(store_path: Path, layout: Layout, out: Path) -> list[Path]:
    """Write one ``.h5`` file per slide with features.

    Parameters
    ----------
    store_path
        Folder of a store.
    layout
        Layout of the files.
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
    require_h5py()
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
        with atomic_path(out / f"{name}.h5") as temporary:
            write_h5(temporary, layout, tiles, row["slide"], (row["width"], row["height"]))
        written.append(out / f"{name}.h5")
    return written


@dataclass(frozen=True)
class ImportResult:
    """Result of an import.

    Attributes
    ----------
    store
        Folder of the store.
    slides, tiles
        Imported so far, slides of earlier imports included.
    failed
        ``file: reason`` for each file that could not be imported.
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
) -> ImportResult:
    """Make a store of a folder of ``.h5`` files.

    The store records that its features were imported (``encoder_hash``): nothing here can know with which weights the
    files were made, so imported features are never confused with extracted ones. Files that cannot be used become rows
    with the reason, like slides.

    Parameters
    ----------
    folder
        Searched with all folders below. Slides are named by file, by path where a name occurs twice.
    layout
        Layout of the files.
    out
        Folder of stores.
    encoder
        Name of the encoder.
    mpp, tile_px
        Resolution and side of the tiles, for files that do not state them.

    Raises
    ------
    DataError
        If there are no files, none can be used, or they were made with different tiles or encoders.
    ResourceError
        Without h5py.
    """
    import pandas as pd

    require_h5py()
    files = sorted(folder.rglob("*.h5"))
    if not files:
        raise DataError("no .h5 files here or below", where=str(folder))
    spec = spec_of_files(files, layout, encoder, mpp, tile_px)
    table = pd.DataFrame({"slide": _names(files, folder), "path": [str(file.resolve()) for file in files]})
    table = table.assign(mpp=math.nan, fingerprint=[fingerprint(file) for file in files])
    failed = []
    with FeatureStore.create_or_open(out, spec) as store:
        keys = store.register(table)
        todo = set(store.pending(keys))
        for key, file in zip(keys, files, strict=True):
            if key in todo and (problem := import_file(store, key, file, layout, mpp, tile_px)):
                failed.append(f"{file}: {problem}")
        store.commit()
        done = [row for row in map(store.status, keys) if row["status"] == "ok"]
    return ImportResult(store.path, len(done), sum(row["n"] for row in done), failed)


def import_file(
    store: FeatureStore, key: str, file: Path, layout: Layout, mpp: float | None, tile_px: int | None
) -> str | None:
    """Stage and record one file under a registered key; returns the problem with it, if there is one."""
    metadata = {"attempts": 1, "reader": f"{layout} h5"}
    try:
        tiles = read_h5(file, layout, mpp, tile_px)
        _require_fit(tiles, store.spec)
        metadata |= {
            "status": "ok",
            "n": len(tiles.x),
            "mpp": tiles.mpp,
            "mpp_source": layout,
            "tile_mpp": tiles.level0_px * tiles.mpp / tiles.tile_px,
            "level0_px": tiles.level0_px,
            "sha256": sha256(file),
        }
        store.stage(key, tiles.x, tiles.y, tiles.features, {"slide": file.stem, **metadata})
    except DataError as error:
        store.record([{"key": key, "status": "unreadable", "error": error.what, "attempts": 1}])
        return error.what
    store.record([{"key": key, **metadata}])
    return None


def spec_of_files(
    files: Sequence[Path], layout: Layout, encoder: str | None, mpp: float | None, tile_px: int | None
) -> StoreSpec:
    """The specification of the first file that can be read; the others must match it.

    Parameters
    ----------
    encoder
        Name of the encoder; ``None``: the name in the file, in letters that a folder name may have.

    Raises
    ------
    DataError
        The problem with the first file, if none can be read.
    """
    problems = []
    for file in files:
        try:
            first = read_h5(file, layout, mpp, tile_px)
        except DataError as error:
            problems.append(error)
            continue
        if encoder and first.encoder and first.encoder != encoder:
            log.warning(
                "%s names its encoder %r; the store will name it %r", file.name, first.encoder, encoder
            )
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


def _require_fit(tiles: SlideTiles, spec: StoreSpec) -> None:
    """Refuse tiles that were made in another way than those of the other files."""
    compared = {
        "dim": (tiles.features.shape[1], spec.dim),
        "mpp": (tiles.target_mpp, spec.mpp),
        "tile_px": (tiles.tile_px, spec.tile_px),
        "encoder": (f"imported: {tiles.encoder or 'unknown'}", spec.encoder_hash),
    }
    different = [
        f"{name}: {mine} here, {theirs} in the others"
        for name, (mine, theirs) in compared.items()
        if mine != theirs
    ]
    if different:
        raise DataError("was made with something else: " + "; ".join(different))


def _names(files: Sequence[Path], folder: Path) -> list[str]:
    counts = Counter(file.stem for file in files)
    return [
        file.stem if counts[file.stem] == 1 else file.relative_to(folder).with_suffix("").as_posix()
        for file in files
    ]


def require_h5py() -> None:
    """Raise :class:`ResourceError` where h5py is not installed."""
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            "reading and writing .h5 needs h5py", fix="pip install 'equipoise[h5]'"
        ) from error
