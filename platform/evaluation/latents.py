"""The latents table: for each patient and task, the vector that is the input of the task's head in a fold's model.

One row per (patient, role, task) of a fold; the vectors of different folds live in different spaces and are
never mixed. The table is stored with the fold's predictions and is used for the silhouettes only.

Format: Parquet; the schema metadata hold ``equipoise.latents`` with the version of the layout. A model that does not
expose the inputs of its heads has a table without rows.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.datasets.errors import DataError

#: Columns in the order of the file; ``latent`` holds float32 arrays, equally long within a task.
LATENT_COLUMNS = ("patient", "repeat", "fold", "role", "task", "latent")
VERSION = "1"

#: File names of the tables of a fold: validation and test patients, and external patients.
FOLD_LATENTS, EXTERNAL_LATENTS = "latents.parquet", "external_latents.parquet"


def write_latents(latents: pd.DataFrame, path: Path) -> Path:
    """Write atomically; the same rows always give the same bytes.

    Raises
    ------
    DataError
        If a number is not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from equipoise.datasets.atomic_io import atomic_path

    table = latents[list(LATENT_COLUMNS)].sort_values(["task", "role", "patient"], kind="stable")
    broken = [not np.isfinite(vector).all() for vector in table["latent"]]
    if any(broken):
        patient = table.loc[broken, "patient"].iloc[0]
        raise DataError(
            f"a latent of {patient!r} is not finite; the model has diverged or a fold is broken",
            where=str(path),
        )
    texts = [pa.array(table[name].astype(str), pa.string()) for name in ("patient", "role", "task")]
    numbers = [pa.array(table[name].astype("int32"), pa.int32()) for name in ("repeat", "fold")]
    vectors = pa.array(list(table["latent"]), pa.list_(pa.float32()))
    columns = [texts[0], *numbers, *texts[1:], vectors]
    arrow = pa.table(dict(zip(LATENT_COLUMNS, columns, strict=True)))
    arrow = arrow.replace_schema_metadata({b"equipoise.latents": VERSION.encode()})
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd")
    return path


def read_latents(path: Path) -> pd.DataFrame:
    """Read a table of :func:`write_latents`.

    Raises
    ------
    DataError
        If the file is missing, broken or of another layout.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as broken:
        raise DataError(f"latents cannot be read: {broken}", where=str(path)) from broken
    version = (table.schema.metadata or {}).get(b"equipoise.latents", b"").decode()
    if version != VERSION or tuple(table.column_names) != LATENT_COLUMNS:
        raise DataError(
            f"not a latents table of layout {VERSION}", where=str(path), fix="run 'equipoise evaluate' again"
        )
    return table.to_pandas()


def read_fold_latents(folders: Iterable[Path]) -> pd.DataFrame | None:
    """Latents of all folds together, or None if a fold has none (runs of earlier releases)."""
    parts = []
    for folder in folders:
        if not (folder / FOLD_LATENTS).exists():
            return None
        parts += [
            read_latents(path)
            for name in (FOLD_LATENTS, EXTERNAL_LATENTS)
            if (path := folder / name).exists()
        ]
    return pd.concat(parts, ignore_index=True) if parts else None
