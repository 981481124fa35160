"""CSV tables below ``evaluation/``: written whole, read with their text as text and every column there."""

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.errors import DataError


def write_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table atomically; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
    return path


def write_rows(table: pd.DataFrame, path: Path) -> None:
    """Write a table; one without rows is not written, and that of an earlier evaluation goes."""
    if len(table):
        write_table(table, path)
    else:
        path.unlink(missing_ok=True)


def read_table(path: Path, what: str, columns: Sequence[str], texts: Collection[str]) -> pd.DataFrame:
    """Read a table; text stays text, and is never missing: a cohort may be called ``NA``.

    Parameters
    ----------
    path
        The file.
    what
        What the table is, for messages.
    columns
        Columns that it has to have.
    texts
        Those that hold text.

    Raises
    ------
    DataError
        If columns are missing.
    """
    others = [name for name in columns if name not in texts]
    table = pd.read_csv(
        path,
        dtype=dict.fromkeys(texts, str),
        keep_default_na=False,
        na_values={name: [""] for name in others},
    )
    if missing := [name for name in columns if name not in table]:
        raise DataError(
            f"{what} lacks the columns {', '.join(missing)}", where=str(path), fix="run 'equipoise evaluate'"
        )
    return table
