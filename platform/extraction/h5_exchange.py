"""Import and export of feature stores as ``.h5`` files of STAMP and TRIDENT."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.errors import DataError
from equipoise.datasets.names import file_stem, plain_name, require_name
from equipoise.datasets.slides.fingerprint import fingerprint, sha256
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec
from equipoise.datasets.store.h5_files import Layout, SlideTiles, TileOrigin, read_h5, read_origin, write_h5
from equipoise.datasets.store.h5_process import H5Reader
from equipoise.datasets.store.shards import finite_rows
from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction.params import MAX_BAD_TILES

log = logging.getLogger(__name__)

#: Files that are looked at to find out what most of them are.
_SAMPLED = 1000


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
    versions = Counter(file_stem(row["slide"]) for row in rows)
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
        name = file_stem(row["slide"])
        name += f".{row['key']}" if versions[name] > 1 else ""
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
        If there are no files, or none can be used.
    ResourceError
        Without h5py.
    ValueError
        If the name of the encoder cannot be the name of a folder.
    """
    import pandas as pd

    require_h5py()
    require_name(encoder, "encoder")
    files = h5_files_below(folder)
    if not files:
        raise DataError("no .h5 files here or below", where=str(folder))
    with H5Reader() as reader:
        stated = Stated(layout, encoder, mpp, tile_px)
        spec = spec_of_files(reader, files, stated)
        table = pd.DataFrame(
            {"slide": _names(files, folder), "path": [str(file.resolve()) for file in files]}
        )
        table = table.assign(mpp=math.nan, fingerprint=[fingerprint_or_none(file) for file in files])
        failed = []
        with FeatureStore.create_or_open(out, spec) as store:
            keys = store.register(table)
            todo = set(store.pending(keys))
            for key, file in zip(keys, files, strict=True):
                if key in todo and (problem := import_file(reader, store, key, file, stated)):
                    failed.append(f"{file}: {problem}")
            store.commit()
            done = [row for row in map(store.status, keys) if row["status"] == "ok"]
    return ImportResult(store.path, len(done), sum(row["n"] for row in done), failed)


@dataclass(frozen=True)
class Stated:
    """What a user states about files to import.

    Attributes
    ----------
    layout
        Of all files, or ``auto``.
    encoder
        Name of the encoder; ``None``: the name in the files, in letters that a folder name may have.
    mpp, tile_px
        Resolution and side of the tiles, for files that do not state them.
    max_bad_tiles
        Share of the vectors of a slide that may hold NaN or infinity; they are left out.
    """

    layout: Layout | Literal["auto"] = "auto"
    encoder: str | None = None
    mpp: float | None = None
    tile_px: int | None = None
    max_bad_tiles: float = MAX_BAD_TILES


def h5_files_below(folder: Path) -> list[Path]:
    """The ``.h5`` files of a folder and all folders below, in the order of their names."""
    return sorted(file for file in folder.rglob("*.h5") if not file.is_dir())


def fingerprint_or_none(file: str | Path) -> str:
    """The fingerprint of a file; empty if it has none, because it is missing, unreadable or no regular file."""
    try:
        return fingerprint(file) if Path(file).is_file() else ""
    except SlideProblem:
        return ""


def import_file(reader: H5Reader, store: FeatureStore, key: str, file: Path, stated: Stated) -> str | None:
    """Stage and record one file under a registered key; returns the problem with it, if there is one."""
    try:
        tiles = read_h5(reader, file, stated.layout, stated.mpp, stated.tile_px)
        _require_fit(tiles, store.spec)
        tiles, remark = _without_bad_vectors(tiles, stated.max_bad_tiles, file)
        metadata = {
            "attempts": 1,
            "reader": f"{tiles.layout} h5",
            "status": "ok",
            "n": len(tiles.x),
            "mpp": tiles.mpp,
            "mpp_source": tiles.layout,
            "tile_mpp": tiles.level0_px * tiles.mpp / tiles.tile_px,
            "level0_px": tiles.level0_px,
            "sha256": sha256(file),
            **remark,
        }
        store.stage(key, tiles.x, tiles.y, tiles.features, {"slide": file.stem, **metadata})
    except (DataError, MemoryError) as error:
        status = error.status if isinstance(error, SlideProblem) else "unreadable"
        reason = reason_of(error) if isinstance(error, DataError) else "there is not enough memory for it"
        store.record([{"key": key, "status": status, "error": reason, "attempts": 1}])
        return reason
    store.record([{"key": key, **metadata}])
    return None


def reason_of(error: DataError) -> str:
    """What is wrong with a file and what helps, on one line."""
    return f"{error.what}; fix: {error.fix}" if error.fix else error.what


def spec_of_files(reader: H5Reader, files: Sequence[Path], stated: Stated) -> StoreSpec:
    """The specification that most of the files have; others become rows with what differs.

    Of many files, :data:`_SAMPLED` are looked at, evenly spread over their order. Between specifications of equally
    many files the one of the first file is taken.

    Raises
    ------
    DataError
        The problem with the first file, if none can be read.
    """
    step = max(1, -(-len(files) // _SAMPLED))
    counts: Counter[TileOrigin] = Counter()
    problems: list[DataError] = []
    for file in [*files[::step], *(each for at, each in enumerate(files) if at % step)]:
        if len(counts) and sum(counts.values()) + len(problems) >= _SAMPLED:
            break  # beyond the sample only until a first file can be read
        try:
            origin = read_origin(reader, file, stated.layout, stated.mpp, stated.tile_px)
            if not origin.dim:
                raise DataError("the file holds no tiles", where=str(file))
            counts[origin] += 1
        except DataError as error:
            problems.append(error)
    if not counts:
        raise problems[0]
    most = counts.most_common(1)[0][0]
    if len(counts) > 1:
        log.warning(
            "%d of %d .h5 files were made with something else than the others and are left out",
            sum(counts.values()) - counts[most],
            sum(counts.values()),
        )
    if stated.encoder and most.encoder and most.encoder != stated.encoder:
        log.warning(
            "the files name their encoder %r; the store will name it %r", most.encoder, stated.encoder
        )
    return StoreSpec(
        encoder=stated.encoder or plain_name(most.encoder) or "unknown",
        encoder_hash=f"imported: {most.encoder or 'unknown'}",
        dim=most.dim,
        mpp=most.target_mpp,
        tile_px=most.tile_px,
        resample="unknown",
        reader=f"{most.layout} h5",
        # Only where it is not the default: stores from before it could be set keep their address.
        tissue={} if stated.max_bad_tiles == MAX_BAD_TILES else {"max_bad_tiles": stated.max_bad_tiles},
    )


def _without_bad_vectors(
    tiles: SlideTiles, tolerated: float, file: Path
) -> tuple[SlideTiles, dict[str, Any]]:
    """The tiles whose vectors are finite, and columns of the index that say how many are not.

    Raises
    ------
    SlideProblem
        ``no_tissue`` for a file without tiles, ``unreadable`` if more vectors are not finite than tolerated.
    """
    if not len(tiles.x):
        raise SlideProblem("no_tissue", "the file holds no tiles", where=str(file))
    good = finite_rows(tiles.features)
    bad = len(good) - int(good.sum())
    if not bad:
        return tiles, {}
    what = f"{bad} of {len(good)} feature vectors hold NaN or infinity in float16"
    if bad > tolerated * len(good):
        raise SlideProblem("unreadable", what, where=str(file))
    kept = replace(tiles, features=tiles.features[good], x=tiles.x[good], y=tiles.y[good])
    return kept, {"bad_tiles": bad, "error": f"{what} and were left out"}


def _require_fit(tiles: SlideTiles, spec: StoreSpec) -> None:
    """Refuse tiles that were made in another way than those of the other files."""
    compared = {
        "dim": (tiles.features.shape[1], spec.dim),
        "mpp": (tiles.target_mpp, spec.mpp),
        "tile_px": (tiles.tile_px, spec.tile_px),
        "encoder": (f"imported: {tiles.encoder or 'unknown'}", spec.encoder_hash),
    }
    if not len(tiles.x):  # a file without tiles may have vectors without numbers
        del compared["dim"]
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
        raise ResourceError("reading and writing .h5 needs h5py", fix="pip install -e '.[h5]'") from error
