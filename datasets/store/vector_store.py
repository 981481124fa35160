"""Vectors of samples by the content that they were made of: a folder of blocks that only ever grows.

A block is a Parquet file of keys and float32 vectors, complete when it appears. Who is interrupted has the blocks that
were finished, and computes the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.folders import Folder

#: What made the vectors.
SPEC = "vectors.json"
_BLOCKS = "blocks"


class VectorStore:
    """Vectors of one encoder.

    Parameters
    ----------
    folder
        Where it is, or will be.
    spec
        Plain data that identifies what makes the vectors; ``dim`` is their length.

    Raises
    ------
    DataError
        If the folder holds vectors of something else.
    """

    def __init__(self, folder: Folder, spec: Mapping[str, Any]) -> None:
        self._folder, self._dim = folder, int(spec["dim"])
        earlier = folder.read(SPEC)
        if earlier is None:
            self._spec: bytes | None = (json.dumps(spec, indent=2, sort_keys=True) + "\n").encode()
        elif json.loads(earlier) == json.loads(json.dumps(spec)):
            self._spec = None
        else:
            raise DataError(
                "this folder holds vectors of another encoder",
                where=folder.address,
                fix="choose another folder for features.store, or remove this one",
            )

    @property
    def address(self) -> str:
        """For messages."""
        return self._folder.address

    def read(self) -> dict[str, NDArray[np.float32]]:
        """Key → ``[D]`` vector, of all blocks.

        Raises
        ------
        DataError
            If a block is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        vectors: dict[str, NDArray[np.float32]] = {}
        for name in self._folder.names(_BLOCKS):
            if not name.endswith(".parquet") or name.startswith("."):
                continue
            path = self._folder.fetch(f"{_BLOCKS}/{name}")
            try:
                table = pq.read_table(path)
                numbers = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                rows = numbers.astype(np.float32).reshape(table.num_rows, self._dim)
                vectors.update(zip(table["key"].to_pylist(), rows, strict=True))
            except (pa.ArrowException, KeyError, ValueError) as error:
                raise DataError(
                    f"a block of vectors is damaged: {error}",
                    where=str(path),
                    fix="remove it; it is made again",
                ) from error
        return vectors

    def write(self, keys: Sequence[str], vectors_ND: NDArray[np.float32]) -> None:
        """Add a block; its name is a function of its keys."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if vectors_ND.shape != (len(keys), self._dim):
            raise ValueError(f"vectors are [{len(keys)}, {self._dim}], not {list(vectors_ND.shape)}")
        if self._spec is not None:
            with self._folder.writing(SPEC) as path:
                path.write_bytes(self._spec)
            self._spec = None
        numbers = pa.array(np.ascontiguousarray(vectors_ND, np.float32).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(numbers, self._dim)
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        with self._folder.writing(f"{_BLOCKS}/{name}.parquet") as path:
            pq.write_table(pa.table({"key": list(keys), "vector": column}), path)
