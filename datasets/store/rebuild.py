"""Rebuilds the index of a store from its shards, and its specification where that is lost, too.

Every shard repeats the specification, and every batch in it says which slide it holds and everything that the index
says about the slide, but for the path of its file. What is kept is what can be read and has the digest that it was
written with; slides whose features are damaged become pending, and are extracted again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from equipoise.datasets.atomic_io import atomic_path, is_temporary
from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.folders import LocalFolder
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.index import INDEX_FILE, PENDING, RESULT_COLUMNS, Index, Row, blank_row
from equipoise.datasets.store.shards import DIGEST, SHARDS, MappedFile, batch_problem
from equipoise.datasets.store.spec import SPEC_FILE, StoreSpec, read_spec, write_spec
from equipoise.datasets.store.staging import STAGING


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild has done.

    Attributes
    ----------
    slides
        Slides with features that the index names now.
    found
        Slides among them that it did not name before.
    lost
        ``slide: reason`` of features that could not be kept.
    """

    slides: int
    found: int
    lost: tuple[str, ...]


def rebuild_index(path: Path) -> Rebuilt:
    """Enter every slide whose features are in the folder into the index, and take out features that are damaged.

    Rows of an index that can be read are kept in their order; slides that it does not name follow in the order of
    shards, then of keys. Paths of files are unknown for these until their slides are registered again, which an
    extraction or a training does.

    Parameters
    ----------
    path
        Folder of a store.

    Raises
    ------
    DataError
        If there is no store, a run is writing to it, or nothing says what its features were made with.
    """
    spec, shard_slides = _specification(path)
    with FeatureStore(LocalFolder(path), spec, shard_slides, Index()) as store:
        store.adopt(())  # takes the lock
        before = _readable_rows(path)
        sound, lost = _sound_slides(path, spec, before)
        rows = [_kept(row, sound.pop(row["key"], None)) for row in before]
        rows += sound.values()
        store.adopt(rows)
        store.commit()
    known = {row["key"] for row in before if row["status"] == "ok"}
    done = [row for row in rows if row["status"] == "ok"]
    return Rebuilt(len(done), sum(row["key"] not in known for row in done), lost)


def unnamed_slides(path: Path, rows: list[Row], shards: list[str]) -> list[str]:
    """What the index does not account for in shards that it does not name: one line each, empty without doubt.

    A shard that an interrupted commit left holds slides that are in another shard now, or are still staged. One that
    holds another slide, or cannot be read, is no leftover that is known.
    """
    done = {row["key"] for row in rows if row["status"] == "ok"}
    accounted = done | {row["key"] for row in rows if (path / STAGING / f"{row['key']}.arrow").exists()}
    doubts = []
    for name in shards:
        try:
            keys = [_text(about, "key") for _, about in _batches(path / SHARDS / name)]
        except DataError as error:
            doubts.append(f"{name}: {error.what}")
            continue
        unknown = [key for key in keys if key not in accounted]
        if unknown:
            doubts.append(f"{name}: holds {len(unknown)} slides that the index does not name")
    return doubts


def _specification(path: Path) -> tuple[StoreSpec, int]:
    """Specification and slides per shard: of ``store.json``, which is written again from a shard if it is gone."""
    shards = _shards(path)
    if (path / SPEC_FILE).exists() or not shards:
        return read_spec(path)
    spec, most = None, 0
    for file in shards:
        try:
            batches = list(_batches(file))
        except DataError:
            continue
        most = max(most, len(batches))
        if batches and spec is None:
            spec = _spec_of(batches[0][0].schema.metadata or {})
    if spec is None:
        raise DataError(
            f"{SPEC_FILE} is gone, and no shard says what the features were made with",
            where=str(path),
            fix="restore the file from a copy, or remove the folder and extract again",
        )
    # A folder of one shard does not say how many slides a shard may have: then as many as in a new store.
    shard_slides = max(most, 32) if len(shards) == 1 else most
    with atomic_path(path / SPEC_FILE) as temporary:
        write_spec(temporary, spec, shard_slides)
    return spec, shard_slides


def _spec_of(schema: dict[bytes, bytes]) -> StoreSpec | None:
    """The specification that a shard repeats, if its address confirms it."""
    told = {name.decode(): value.decode() for name, value in schema.items()}
    try:
        spec = StoreSpec(
            told["encoder"],
            told["encoder_hash"],
            int(told["dim"]),
            float(told["mpp"]),
            int(told["tile_px"]),
            told["resample"],
            told["reader"],
            json.loads(told["tissue"]),
            told["code"],
        )
    except (KeyError, ValueError):
        return None
    whole = (
        replace(spec, mpp=int(spec.mpp)) if spec.mpp == int(spec.mpp) else spec
    )  # 1 and 1.0 differ in JSON
    return next((one for one in (spec, whole) if one.address == told.get("address")), None)


def _readable_rows(path: Path) -> list[Row]:
    try:
        return list(Index.load(path / INDEX_FILE))
    except DataError:
        return []


def _sound_slides(path: Path, spec: StoreSpec, rows: list[Row]) -> tuple[dict[str, Row], tuple[str, ...]]:
    """Key → row of the slide, from the shard that the index names, else from the first that has it, else staged; and
    what could not be used."""
    named = {(row["key"], row["shard"]) for row in rows}
    sound: dict[str, Row] = {}
    lost: dict[str, str] = {}
    for file in _shards(path) + sorted((path / STAGING).glob("[0-9a-f]*.arrow")):
        staged = file.parent.name == STAGING
        try:
            batches = list(_batches(file))
        except DataError as error:
            lost[file.name] = f"{file.name}: {error.what}"
            continue
        for at, (batch, about) in enumerate(batches):
            row = _row(about, len(batch), "" if staged else file.name, -1 if staged else at)
            if staged and file.name != f"{row['key']}.arrow":
                continue  # a chunk of a slide
            problem = batch_problem(batch, about, spec)
            if problem:
                lost[row["key"]] = f"{row['slide'] or row['key']}: {file.name}, batch {at}: {problem}"
            elif row["key"] not in sound or (row["key"], file.name) in named:
                sound[row["key"]] = row
    return sound, tuple(text for key, text in lost.items() if key not in sound)


def _kept(row: Row, found: Row | None) -> Row:
    """A row of the index with the features that were found; pending if it named some and there are none."""
    if found is not None:
        kept = {name: row[name] for name in ("path", "fingerprint", "mpp_override")}
        return found | kept
    if row["status"] != "ok":
        return row
    identity = {name: row[name] for name in ("key", "slide", "path", "fingerprint", "mpp_override")}
    return blank_row(**identity, status=PENDING)


def _row(about: dict[str, str], tiles: int, shard: str, batch: int) -> Row:
    told: dict[str, Any] = {name: json.loads(value) for name, value in about.items()}
    told.pop(DIGEST, None)
    stated = told.pop("mpp_override", None)
    identity = {name: told.get(name, "") for name in ("key", "slide", "fingerprint")}
    result = {name: told[name] for name in RESULT_COLUMNS if told.get(name) is not None}
    override = math.nan if stated is None else float(stated)
    where = {"shard": shard, "batch": batch, "n": tiles}
    return blank_row(**{**identity, "mpp_override": override, "status": "ok", **result, **where})


def _shards(path: Path) -> list[Path]:
    return [file for file in sorted((path / SHARDS).glob("*.arrow")) if not is_temporary(file.name)]


def _batches(file: Path) -> Iterator[tuple[pa.RecordBatch, dict[str, str]]]:
    mapped = MappedFile(file)
    for at in range(len(mapped)):
        yield mapped.batch(at)


def _text(about: dict[str, str], name: str) -> str:
    return str(json.loads(about[name])) if name in about else ""
