"""What a store no longer needs: leftovers of interrupted runs, and versions of slides that nobody has any more."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from equipoise.datasets.features import FeatureStore
from equipoise.datasets.slides.fingerprint import fingerprint
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.store.index import PENDING, Row
from equipoise.datasets.store.shards import SHARDS
from equipoise.datasets.store.spec import QC_FOLDER
from equipoise.datasets.whole_files import ASIDE_PREFIX, ASIDE_SUFFIX


@dataclass(frozen=True)
class Leftover:
    """Something that a store does not need.

    Attributes
    ----------
    name
        File below the store, or ``slide NAME (key)``.
    why
        In words.
    bytes
        What its removal sets free.
    """

    name: str
    why: str
    bytes: int


def sweep(path: Path, dry_run: bool = False) -> list[Leftover]:
    """Remove what a store does not need.

    Finished slides that an interrupted run staged and the index waits for are not leftovers: they are taken into
    the store. A version of a slide goes only if its file is no longer there as it was, *and* the file of another
    version is: a share that is not mounted costs nothing.

    Parameters
    ----------
    path
        Folder of a store.
    dry_run
        Only say what would go.

    Raises
    ------
    DataError
        If there is no store, or a run is writing to it.
    """
    with FeatureStore.open(path) as store:
        store.lock()
        rows = store.rows()
        adopted = store.adopt(row["key"] for row in rows if row["status"] == PENDING)
        old = _superseded(rows)
        gone = {row["key"] for row in old}
        files = _unneeded_files(path, [row for row in rows if row["key"] not in gone], set(adopted))
        found = [_superseded_slide(row, store.spec.dim) for row in old]
        found += [
            Leftover(str(file.relative_to(path)), why, file.stat().st_size) for file, why in files.items()
        ]
        if dry_run or not (found or adopted):
            return found
        store.remove(gone)
        store.commit()
        store.staging.clear(keep=set())
        for file in files:
            file.unlink(missing_ok=True)
        return found


def _superseded(rows: list[Row]) -> list[Row]:
    """Versions whose file is gone or was replaced, of slides of which another version's file is there."""
    versions: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        versions[row["slide"]].append(row)
    old = []
    for several in versions.values():
        if len(several) > 1:
            there = [_has_its_file(row) for row in several]
            if any(there):
                old += [row for row, present in zip(several, there, strict=True) if not present]
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


def _unneeded_files(path: Path, rows: list[Row], adopted: set[str]) -> dict[Path, str]:
    """Files by why nobody needs them, in the order of their names."""
    keys, shards = {row["key"] for row in rows}, {row["shard"] for row in rows}
    found: dict[Path, str] = {}
    for file in sorted(path.rglob("*")):
        folder = file.relative_to(path).parts[0]
        if not file.is_file():
            continue
        if file.name.startswith(ASIDE_PREFIX) and file.name.endswith(ASIDE_SUFFIX):
            found[file] = "half-written by a process that died"
        elif folder == SHARDS and file.name not in shards:
            found[file] = "no slide of the index is in this shard"
        elif folder == "staging" and file.parent.name == "attempts":
            found[file] = "mark of an interrupted attempt"
        elif folder == "staging" and file.stem not in adopted:
            found[file] = (
                "staged by an interrupted run and not in the index; `equipoise extract` would take it up"
            )
        elif folder == QC_FOLDER and file.stem not in keys:
            found[file] = "picture of a slide that is not in the index"
    return found
