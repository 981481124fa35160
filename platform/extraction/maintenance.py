"""Maintenance of feature stores for ``equipoise store``: list, verify, collect garbage, rebuild, export, import."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from equipoise.datasets.errors import InUseError
from equipoise.datasets.names import require_name
from equipoise.datasets.store.h5_files import Layout
from equipoise.datasets.store.listing import find_stores, summarise_store
from equipoise.datasets.store.maintenance import collect_garbage, verify_store
from equipoise.datasets.store.rebuild import rebuild_index
from equipoise.datasets.store.shards import SHARDS
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.extraction.h5_exchange import export_features, import_features

log = logging.getLogger(__name__)

#: Maximum number of lines of a list in an error message.
_SHOWN = 20


def list_stores(folder: Path) -> dict[str, Any]:
    """Print one line per store."""
    rows = [("encoder", "um/px", "px", "dim", "slides", "tiles", "size", "store")]
    damaged = 0
    for path in find_stores(folder):
        try:
            s = summarise_store(path)
        except DataError as error:
            damaged += 1
            log.warning("%s", error)
            continue
        slides = str(s.slides) if s.slides == s.registered else f"{s.slides}/{s.registered}"
        scale = (s.spec.encoder, f"{s.spec.mpp:g}", str(s.spec.tile_px), str(s.spec.dim))
        rows.append((*scale, slides, str(s.tiles), size_text(s.bytes), str(path)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return {"stores": len(rows) - 1, "damaged": damaged}


def verify_stores(folder: Path) -> dict[str, Any]:
    """Read and check everything that the indices name.

    Raises
    ------
    DataError
        Naming everything that is broken.
    """
    stores = find_stores(folder)
    problems = [f"{path.name}: {problem}" for path in stores for problem in verify_store(path)]
    if problems:
        raise DataError(
            f"{len(problems)} problems in {len(stores)} feature stores\n{_shown(problems)}",
            where=str(folder),
            fix="restore these files from a copy, or run `equipoise store rebuild` on the store: it keeps what is "
            "sound, and `equipoise extract` makes the rest again",
        )
    print(f"{len(stores)} feature stores are complete and unchanged")
    return {"stores": len(stores), "problems": 0}


def clean_stores(folder: Path, dry_run: bool) -> dict[str, Any]:
    """Remove files that stores do not need; stores that are being written are skipped.

    Raises
    ------
    DataError
        If the index of a store does not account for what is in it; nothing is removed from that store.
    """
    removed = freed = busy = 0
    doubts: list[DataError] = []
    for path in find_stores(folder):
        try:
            leftovers = collect_garbage(path, dry_run)
        except InUseError as error:
            busy += 1
            log.warning("skipped: %s", error)
            continue
        except DataError as error:
            doubts.append(error)
            continue
        for leftover in leftovers:
            print(f"{path.name}: {leftover.name} ({size_text(leftover.bytes)}): {leftover.why}")
        removed += len(leftovers)
        freed += sum(leftover.bytes for leftover in leftovers)
    print(
        f"{removed} files and slide versions, {size_text(freed)}"
        + (": nothing was removed (--dry-run)" if dry_run else " removed")
    )
    if doubts:
        raise DataError(
            f"{len(doubts)} feature stores were left as they are\n{_shown([str(doubt) for doubt in doubts])}",
            where=str(folder),
        )
    return {"removed": 0 if dry_run else removed, "found": removed, "bytes": freed, "left_alone": busy}


def rebuild_stores(folder: Path) -> dict[str, Any]:
    """Rebuild the index of every store below from its shards.

    Raises
    ------
    DataError
        Naming the features that could not be kept; the others are in the index.
    """
    stores = [folder] if (folder / SHARDS).is_dir() else find_stores(folder)
    slides = found = 0
    lost: list[str] = []
    for path in stores:
        result = rebuild_index(path)
        print(
            f"{path.name}: {result.slides} slides with features, {result.found} of them were not in the index"
        )
        slides, found = slides + result.slides, found + result.found
        lost += [f"{path.name}: {line}" for line in result.lost]
    if lost:
        raise DataError(
            f"{len(lost)} features or files could not be kept\n{_shown(lost)}",
            where=str(folder),
            fix="run `equipoise extract`: it makes them again",
        )
    return {"stores": len(stores), "slides": slides, "found": found}


def export_store(folder: Path, layout: str, out: Path) -> dict[str, Any]:
    """Write the slides of one store as ``.h5`` files."""
    stores = find_stores(folder)
    if len(stores) > 1:
        raise DataError(
            f"{len(stores)} feature stores here, one at a time can be exported",
            where=str(folder),
            fix=f"name one of them: {', '.join(path.name for path in stores[:5])}",
        )
    written = export_features(stores[0], cast(Layout, layout), out)
    print(f"{len(written)} files in {out}")
    return {"out": out, "files": len(written)}


def import_store(
    folder: Path, layout: str, out: Path, encoder: str, mpp: float | None, px: int | None
) -> dict[str, Any]:
    """Make a store of ``.h5`` files.

    Raises
    ------
    DataError
        If some files cannot be imported; the others are.
    """
    try:
        result = import_features(folder, cast(Layout, layout), out, require_name(encoder, "encoder"), mpp, px)
    except ValueError as error:
        raise StudyError(str(error), where="--encoder") from error
    print(f"{result.store}: {result.slides} slides, {result.tiles} tiles")
    if result.failed:
        raise DataError(
            f"{len(result.failed)} files could not be imported, the others are in {result.store}\n"
            f"{_shown(result.failed)}",
            where=str(folder),
            fix="repair or remove these files and import again; files that are in the store are not read again",
        )
    return {"store": result.store, "slides": result.slides, "tiles": result.tiles}


def require_options(action: str, given: Mapping[str, object]) -> None:
    """Check the options that an action needs.

    Raises
    ------
    StudyError
        Naming the missing options.
    """
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise StudyError(f"`store {action}` needs {' and '.join(missing)}", where="command line")


def size_text(size: float) -> str:
    """``1.5 GB``; units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _shown(lines: list[str]) -> str:
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([*(f"  {line}" for line in lines[:_SHOWN]), *more])
