"""Maintenance of a store: whether it holds what its index says, byte for byte; and garbage collection.

Garbage are leftovers of interrupted runs and superseded versions of slides.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from equipoise.datasets.atomic_io import is_temporary
from equipoise.datasets.errors import DataError
from equipoise.datasets.slides.fingerprint import fingerprint
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.index import INDEX_FILE, PENDING, REBUILD, Row
from equipoise.datasets.store.rebuild import unnamed_slides
from equipoise.datasets.store.shards import SHARDS, MappedFile, batch_problem, shard_name
from equipoise.datasets.store.spec import QC_FOLDER, SPEC_FILE, StoreSpec, read_spec


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
        If there is no store, its index is lost or damaged, or a shard holds slides that the index does not name.
    StoreInUseError
        If a run is writing to it.
    """
    with FeatureStore.open(path) as store:
        store.lock()
        rows = store.rows()
        _refuse_in_doubt(path, rows)
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


def _refuse_in_doubt(path: Path, rows: list[Row]) -> None:
    """Nothing is removed from a folder whose index does not account for all of its features."""
    if not (path / INDEX_FILE).exists():
        raise DataError("there is no index: nothing is removed", where=str(path), fix=REBUILD)
    unnamed = {file.name for file in (path / SHARDS).glob("[0-9]*.arrow")} - {row["shard"] for row in rows}
    if doubts := unnamed_slides(path, rows, sorted(unnamed)):
        raise DataError(
            f"nothing is removed, because the index does not account for what is there: {'; '.join(doubts[:5])}",
            where=str(path),
            fix=f"{REBUILD}, or remove these files yourself",
        )


def _superseded(rows: list[Row]) -> list[Row]:
    """Versions whose file is missing or was replaced, of slides that have another version whose file is there."""
    versions: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        versions[row["slide"]].append(row)
    old = []
    for several in versions.values():
        if len(several) > 1 and all(
            row["path"] for row in several
        ):  # a rebuilt index knows no paths at first
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
        if is_temporary(file.name):
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


def verify_store(path: Path) -> list[str]:
    """What is wrong with a store, one line each; empty if it is sound.

    Reads every feature once. Looks at the specification and its address, the index, the name of every shard (it
    follows from the slides in it), and for every slide with features whether its batch can be read, belongs to it,
    has as many tiles and numbers as the index and the specification say, all of them finite, and the digest it was
    written with (stores of format 1.0.0 have none).
    """
    try:
        spec, shard_slides = read_spec(path)
        rows = FeatureStore.open(path).rows()
    except DataError as error:
        return [f"{error.where}: {error.what}"]
    if not (path / INDEX_FILE).exists():
        return [f"{INDEX_FILE}: is not there, so that nothing says what belongs into this store"]
    unnamed = sorted(
        {file.name for file in (path / SHARDS).glob("[0-9]*.arrow")} - {row["shard"] for row in rows}
    )
    problems = unnamed_slides(path, rows, unnamed)
    written = json.loads((path / SPEC_FILE).read_text("utf-8")).get("address")
    if written != spec.address:
        problems.append(
            f"{SPEC_FILE}: the address {written} does not belong to the specification ({spec.address})"
        )
    rows_by_shard: dict[str, list[Row]] = defaultdict(list)
    for at, row in enumerate(rows):
        if row["status"] == "ok":
            rows_by_shard[row["shard"]].append(row)
            number = at // shard_slides
            if row["shard"][:5] != f"{number:05d}":
                problems.append(
                    f"{row['slide']}: belongs in shard {number:05d}, not in {row['shard'] or 'none'}"
                )
    for shard, slides in rows_by_shard.items():
        problems += _shard_problems(path / SHARDS / shard, slides, spec)
    return problems


def _shard_problems(file: Path, rows: list[Row], spec: StoreSpec) -> Iterator[str]:
    expected = shard_name(int(file.name[:5]), [row["key"] for row in rows])
    if file.name != expected:
        yield f"{file.name}: should be {expected} by the slides in it"
    try:
        shard = MappedFile(file)
    except DataError as error:
        yield from (f"{row['slide']}: {file.name}: {error.what}" for row in rows)
        return
    if len(shard) != len(rows):
        yield f"{file.name}: holds {len(shard)} slides, the index names {len(rows)}"
    for row in rows:
        problem = _slide_problem(shard, row, spec)
        if problem:
            yield f"{row['slide']}: {file.name}, batch {row['batch']}: {problem}"


def _slide_problem(shard: MappedFile, row: Row, spec: StoreSpec) -> str | None:
    """What is wrong with the features of one slide."""
    if not 0 <= row["batch"] < len(shard):
        return "is not there"
    try:
        batch, metadata = shard.batch(row["batch"])
    except DataError as error:
        return error.what
    if metadata.get("key") != json.dumps(row["key"]):
        return f"holds another slide ({metadata.get('key', 'unnamed')})"
    if problem := batch_problem(batch, metadata, spec):
        return problem
    return None if len(batch) == row["n"] else f"has {len(batch)} tiles instead of {row['n']}"
