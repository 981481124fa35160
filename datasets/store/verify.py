"""Checks that a store holds what its index says, byte for byte."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.index import INDEX_FILE, Index, Row
from equipoise.datasets.store.shards import DIGEST, SHARDS, MappedFile, batch_arrays, batch_digest, shard_name
from equipoise.datasets.store.spec import SPEC_FILE, StoreSpec, read_spec


def verify_store(path: Path) -> list[str]:
    """What is wrong with a store, one line each; empty if it is sound.

    Reads every feature once. Looks at the specification and its address, the index, the name of every shard (it
    follows from the slides in it), and for every slide with features whether its batch can be read, belongs to it,
    has as many tiles and numbers as the index and the specification say, all of them finite, and the digest it was
    written with (stores of format 1.0.0 have none).
    """
    try:
        spec, shard_slides = read_spec(path)
        rows = list(Index.load(path / INDEX_FILE))
    except DataError as error:
        return [f"{error.where}: {error.what}"]
    problems = []
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
        batch.validate(full=True)
    except (DataError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        return str(getattr(error, "what", error))
    if metadata.get("key") != json.dumps(row["key"]):
        return f"holds another slide ({metadata.get('key', 'unnamed')})"
    if (batch.schema.metadata or {}).get(b"address", b"").decode() != spec.address:
        return "was made with another specification"
    features, _, _ = batch_arrays(batch)
    if features.shape != (row["n"], spec.dim):
        return f"has {features.shape[0]} tiles of {features.shape[1]} numbers instead of {row['n']} of {spec.dim}"
    if DIGEST in metadata and metadata[DIGEST] != json.dumps(batch_digest(batch)):
        return "is not what was written: its digest differs"
    return None if np.isfinite(features).all() else "holds NaN or infinity"
