"""Garbage collection: leftovers of interrupted runs, and superseded versions of slides."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from equipoise.datasets.atomic_io import TEMPORARY_PREFIX, TEMPORARY_SUFFIX
from equipoise.datasets.slides.fingerprint import fingerprint
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.index import PENDING, Row
from equipoise.datasets.store.shards import SHARDS
from equipoise.datasets.store.spec import QC_FOLDER


@dataclass(frozen=True)
class Leftover:
    """Something that a store does not need.

    Attributes
    ----------
    name
        File below the store, or ``slide NAME (key)``.
    why
        The reason, as text.
    bytes
        Bytes that its removal frees.
    """

    name: str
    why: str
    bytes: int


def collect_garbage(path: Path, dry_run: bool = False) -> list[Leftover]:
    """Remove what a store does not need.

    Finished slides that an interrupted run staged and that are pending in the index are not leftovers: they are
    recovered. A version of a slide is removed only if its file is missing or has changed *and* the file of another
    version is there: nothing is lost when a network share is not mounted.

    Parameters
    ----------
    path
        Folder of a store.
    dry_run
        Only report what would be removed.

    Raises
    ------
    DataError
        If there is no store, or a run is writing to it.
    """
    with FeatureStore.open(path) as store:
        store.lock()
        rows = store.rows()
        recovered = store.recover_staged(row["key"] for row in rows if row["status"] == PENDING)
        old = _superseded(rows)
        gone = {row["key"] for row in old}
        files = _unneeded_files(path, [row for row in rows if row["key"] not in gone], set(recovered))
        leftovers = [_superseded_slide(row, store.spec.dim) for row in old]
        leftovers += [
            Leftover(str(file.relative_to(path)), why, file.stat().st_size) for file, why in files.items()
        ]
        if dry_run or not (leftovers or recovered):
            return leftovers
        store.remove(gone)
        store.commit()
        store.staging.clear(keep=set())
        for file in files:
            file.unlink(missing_ok=True)
        return leftovers


def _superseded(rows: list[Row]) -> list[Row]:
    """Versions whose file is missing or was replaced, of slides that have another version whose file is there."""
    versions: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        versions[row["slide"]].append(row)
    old = []
    for several in versions.values():
        if len(several) > 1:
            available = [_has_its_file(row) for row in several]
            if any(available):
                old += [row for row, present in zip(several, available, strict=True) if not present]
    return old


def _has_its_file(row: Row) -> bool:
    try:
        return fingerprint(row["path"]) == row["fingerprint"]
    except SlideProblem:
        return False


def _superseded_slide(row: Row, dim: int) -> Leftover:
    return Leftover(
        f"slide {row['slide']} ({row['key']})",
        f"{row['path']} is gone or was replaced, and another version is in the store",
        row["n"] * (2 * dim + 8),
    )


def _unneeded_files(path: Path, rows: list[Row], recovered: set[str]) -> dict[Path, str]:
    """Files that are not needed and the reason, in the order of their names."""
    keys, shards = {row["key"] for row in rows}, {row["shard"] for row in rows}
    unneeded: dict[Path, str] = {}
    for file in sorted(path.rglob("*")):
        folder = file.relative_to(path).parts[0]
        if not file.is_file():
            continue
        if file.name.startswith(TEMPORARY_PREFIX) and file.name.endswith(TEMPORARY_SUFFIX):
            unneeded[file] = "half-written by a process that died"
        elif folder == SHARDS and file.name not in shards:
            unneeded[file] = "no slide of the index is in this shard"
        elif folder == "staging" and file.parent.name == "attempts":
            unneeded[file] = "mark of an interrupted attempt"
        elif folder == "staging" and file.stem not in recovered:
            unneeded[file] = (
                "staged by an interrupted run and not in the index; `equipoise extract` would recover it"
            )
        elif folder == QC_FOLDER and file.stem not in keys:
            unneeded[file] = "picture of a slide that is not in the index"
    return unneeded
