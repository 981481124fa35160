"""Arrow IPC files: one record batch per slide, memory-mapped, no copy between disk and NumPy.

The same layout serves one staged slide (a file with one batch) and a shard (a file with the batches of its
slides in the order of their positions).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.spec import ENCODING_TYPE, ENCODING_VERSION, StoreSpec

#: Folder of the shards within a store.
SHARDS = "shards"

#: Key of a batch's metadata: :func:`batch_digest` of what was written.
DIGEST = "digest"

#: Rows that are looked at together.
_ROWS = 8192


def shard_name(number: int, keys: Iterable[str]) -> str:
    """Name of the shard of that number with these finished slides."""
    return f"{number:05d}-{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:8]}.arrow"


def shard_schema(spec: StoreSpec) -> pa.Schema:
    """Columns ``x``, ``y`` (int32) and ``features`` (fixed-size list of float16), with the specification."""
    metadata = {
        "encoding-type": ENCODING_TYPE,
        "encoding-version": ENCODING_VERSION,
        "address": spec.address,
        "encoder": spec.encoder,
        "encoder_hash": spec.encoder_hash,
        "dim": str(spec.dim),
        "mpp": f"{spec.mpp:g}",
        "tile_px": str(spec.tile_px),
        "resample": spec.resample,
        "reader": spec.reader,
        "tissue": json.dumps(spec.tissue, sort_keys=True),
        "code": spec.code,
    }
    fields = [
        pa.field("x", pa.int32(), nullable=False),
        pa.field("y", pa.int32(), nullable=False),
        pa.field(
            "features", pa.list_(pa.field("item", pa.float16(), nullable=False), spec.dim), nullable=False
        ),
    ]
    return pa.schema(fields, metadata=metadata)


def slide_batch(
    spec: StoreSpec, x: NDArray[np.int32], y: NDArray[np.int32], features: NDArray[np.float16]
) -> pa.RecordBatch:
    """One slide as a record batch.

    Parameters
    ----------
    x, y
        int32 ``[N]``, level-0 pixels.
    features
        ``[N, D]``; converted to float16.

    Raises
    ------
    DataError
        If shapes do not fit the specification or a feature is NaN or infinite.
    """
    values = np.ascontiguousarray(features, dtype=np.float16)
    if values.shape != (len(x), spec.dim) or len(x) != len(y):
        raise DataError(f"features {values.shape} do not fit {len(x)} tiles of {spec.dim} numbers")
    bad = len(x) - int(finite_rows(values).sum())
    if bad:
        raise DataError(f"{bad} of {len(x)} feature vectors hold NaN or infinity in float16")
    schema = shard_schema(spec)
    flat = pa.array(values.reshape(-1))
    columns = [
        pa.array(np.ascontiguousarray(x, np.int32)),
        pa.array(np.ascontiguousarray(y, np.int32)),
        pa.FixedSizeListArray.from_arrays(flat, type=schema.field("features").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def finite_rows(features: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which vectors ``[N, D]`` have neither NaN nor infinity, bool ``[N]``."""
    chunks = range(0, len(features), _ROWS)  # in chunks: large slides have hundreds of MB
    good = [np.isfinite(features[at : at + _ROWS]).all(axis=1) for at in chunks]
    return np.concatenate(good) if good else np.ones(0, bool)


def write_batches(
    path: Path, spec: StoreSpec, batches: Iterable[tuple[pa.RecordBatch, dict[str, str]]]
) -> None:
    """Write record batches, each with its own metadata, one after another: memory holds one at a time."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, shard_schema(spec)) as writer:
        for batch, about in batches:
            writer.write_batch(batch, custom_metadata=about)


class MappedFile:
    """A memory-mapped IPC file; its pages are shared by all processes of a machine.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._source = pa.memory_map(str(path))
            self._reader = pa.ipc.open_file(self._source)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"features cannot be read: {error}", where=str(path), fix="run `equipoise extract` again"
            ) from error

    def __len__(self) -> int:
        return self._reader.num_record_batches

    def batch(self, at: int) -> tuple[pa.RecordBatch, dict[str, str]]:
        """A record batch and its metadata."""
        try:
            result = self._reader.get_batch_with_custom_metadata(at)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"batch {at} cannot be read: {error}",
                where=str(self.path),
                fix="run `equipoise extract` again",
            ) from error
        metadata = {k.decode(): v.decode() for k, v in dict(result.custom_metadata or {}).items()}
        return result.batch, metadata


def batch_arrays(batch: pa.RecordBatch) -> tuple[NDArray[np.float16], NDArray[np.int32], NDArray[np.int32]]:
    """``features [N, D]`` and ``x``, ``y`` ``[N]``, all views of the mapped file (read-only)."""
    column = batch.column(batch.schema.get_field_index("features"))
    features = column.flatten().to_numpy(zero_copy_only=True).reshape(len(batch), column.type.list_size)
    x = batch.column(batch.schema.get_field_index("x")).to_numpy(zero_copy_only=True)
    y = batch.column(batch.schema.get_field_index("y")).to_numpy(zero_copy_only=True)
    return features, x, y


def batch_digest(batch: pa.RecordBatch) -> str:
    """32 hexadecimal digits of x, y and features: tells a flipped bit."""
    features, x, y = batch_arrays(batch)
    digest = hashlib.sha256()
    for array in (x, y, features):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def batch_problem(batch: pa.RecordBatch, metadata: dict[str, str], spec: StoreSpec) -> str | None:
    """Why the features of a slide cannot be used; None if they are what was written.

    Reads all of them. Batches of format 1.0.0 have no digest.
    """
    try:
        batch.validate(full=True)
    except ValueError as error:  # pyarrow's ArrowInvalid is a ValueError
        return str(error)
    if (batch.schema.metadata or {}).get(b"address", b"").decode() != spec.address:
        return "was made with another specification"
    features, _, _ = batch_arrays(batch)
    if features.shape[1] != spec.dim:
        return f"has vectors of {features.shape[1]} numbers instead of {spec.dim}"
    if DIGEST in metadata and metadata[DIGEST] != json.dumps(batch_digest(batch)):
        return "is not what was written: its digest differs"
    return None if np.isfinite(features).all() else "holds NaN or infinity"


def json_metadata(values: dict[str, Any]) -> dict[str, str]:
    """Batch metadata: every value as JSON, so that types survive."""
    return {key: json.dumps(value) for key, value in sorted(values.items())}
