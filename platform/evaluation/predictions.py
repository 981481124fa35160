"""The predictions table: one row per (patient, repeat, fold, role, task, class).

Every metric, figure and table of a run is computed from this file and from nothing else, so impossible values are
refused on writing and on reading: duplicate rows, scores that are not numbers, probabilities outside [0, 1], an
event without a time, a patient who is in both validation and test of one fold.

Format: Parquet; the schema metadata hold ``equipoise.predictions`` with the version of the layout.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.datasets.errors import DataError

#: Column → pandas dtype, in the order of the file.
COLUMNS = {
    "patient": "str",
    "cohort": "str",
    "site": "str",
    "repeat": "int32",
    "fold": "int32",
    "role": "str",
    "task": "str",
    "class": "str",
    "score": "float64",
    "target": "float64",
    "time": "float64",
    "event": "float64",
}
#: What identifies a row, and the order of rows in the file.
KEYS = ("patient", "repeat", "fold", "role", "task", "class")
ROLES = ("val", "test", "external")
VERSION = "1"


def validate(predictions: pd.DataFrame, where: str = "predictions") -> pd.DataFrame:
    """The table with the right types in canonical order.

    Parameters
    ----------
    predictions
        Rows in any order; extra columns are refused.
    where
        Name of the table or file in error messages.

    Raises
    ------
    DataError
        Naming the first patients concerned.
    """
    _check_columns(predictions, where)
    table = predictions[list(COLUMNS)].copy()
    for column, dtype in COLUMNS.items():
        if dtype == "str":
            _refuse(table, table[column].isna(), f"column {column!r} is empty", where)
            table[column] = table[column].astype(str).astype(object)
        else:
            table[column] = _numeric(table[column], dtype, where)
    table = table.sort_values(list(KEYS), kind="stable", ignore_index=True)
    _check_rows(table, where)
    _check_tasks(table, where)
    return table


def write_predictions(predictions: pd.DataFrame, path: Path) -> Path:
    """Validate and write as Parquet, atomically; the same rows always give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from equipoise.datasets.atomic_io import atomic_path

    table = pa.Table.from_pandas(validate(predictions, str(path)), preserve_index=False)
    table = table.replace_schema_metadata({b"equipoise.predictions": VERSION.encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and validate.

    Raises
    ------
    DataError
        If the file is missing, is not a predictions table, or has a newer layout.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise DataError("there are no predictions yet", where=str(path), fix="run 'equipoise train'")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as broken:
        raise DataError(f"not a readable Parquet file: {broken}", where=str(path)) from broken
    version = (table.schema.metadata or {}).get(b"equipoise.predictions", VERSION.encode()).decode()
    if version != VERSION:
        raise DataError(
            f"predictions have layout version {version}; this release reads {VERSION}",
            where=str(path),
            fix="read it with the release that wrote it, or run 'equipoise train' again",
        )
    return validate(table.to_pandas(), str(path))


def kind_of(rows: pd.DataFrame) -> str:
    """Kind of the task that these rows belong to: binary, multiclass, survival or regression."""
    classes = rows["class"].unique()
    if (classes != "").any():
        return "binary" if len(classes) == 1 else "multiclass"
    return "survival" if rows["event"].notna().any() else "regression"


def labelled(rows: pd.DataFrame) -> pd.Series:
    """Which rows have a label to compare with: a time for survival, a target otherwise."""
    return rows["time"].notna() if kind_of(rows) == "survival" else rows["target"].notna()


def _check_columns(table: pd.DataFrame, where: str) -> None:
    missing = [c for c in COLUMNS if c not in table]
    extra = [str(c) for c in table if c not in COLUMNS]
    if missing or extra:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(extra)}"] * bool(
            extra
        )
        raise DataError(
            f"a predictions table {' and '.join(parts)}; its columns are {', '.join(COLUMNS)}", where=where
        )


def _numeric(values: pd.Series, dtype: str, where: str) -> pd.Series:
    try:
        numbers = values.astype("float64")
        # NaN is no whole number either
        bad = numbers[numbers != np.floor(numbers)] if dtype.startswith("int") else numbers[:0]
        if bad.empty:
            return numbers.astype(dtype)
    except (TypeError, ValueError):
        bad = values[pd.to_numeric(values, errors="coerce").isna() & values.notna()]
    wanted = "whole numbers" if dtype.startswith("int") else "numbers"
    example = f": {bad.tolist()[0]!r}" if len(bad) else ""
    raise DataError(f"column {values.name!r} does not hold {wanted}{example}", where=where)


def _check_rows(table: pd.DataFrame, where: str) -> None:
    refuse = [
        (~table["role"].isin(ROLES), f"role is not one of {', '.join(ROLES)}"),
        (
            ~np.isfinite(table["score"]),
            "score is not a finite number; the model has diverged or a fold is broken",
        ),
        (table.duplicated(list(KEYS)), f"two rows for the same {', '.join(KEYS)}"),
        (np.isinf(table["target"]) | np.isinf(table["time"]), "target or time is infinite"),
        (table["event"].notna() & ~table["event"].isin([0, 1]), "event is neither 0 nor 1"),
        (
            table["event"].notna() != table["time"].notna(),
            "time and event must both be present or both be missing",
        ),
        (table["time"] <= 0, "time is not above 0"),
    ]
    for wrong, what in refuse:
        _refuse(table, wrong, what, where)
    roles = table[table["role"].isin(["val", "test"])].drop_duplicates(["patient", "repeat", "fold", "role"])
    both = roles.duplicated(["patient", "repeat", "fold"])
    _refuse(roles, both, "a patient is both validation and test of one fold: that is leakage", where)


def _check_tasks(table: pd.DataFrame, where: str) -> None:
    probability = table["class"] != ""
    _refuse(
        table,
        probability & ~table["score"].between(0, 1),
        "the score of a class is a probability in [0, 1]",
        where,
    )
    _refuse(
        table,
        probability & table["target"].notna() & ~table["target"].isin([0, 1]),
        "the target of a class is 0 or 1",
        where,
    )
    of_task = table.groupby("task")["class"]
    mixed = probability.groupby(table["task"]).transform("nunique") > 1
    _refuse(table, mixed, "a task has rows with and without a class", where)
    of_patient = table.groupby(list(KEYS[:-1]))
    incomplete = of_patient["class"].transform("size") != of_task.transform("nunique")
    _refuse(table, incomplete, "a prediction lacks some of its task's classes", where)
    several = probability & (of_patient["target"].transform("sum") > 1)
    _refuse(table, several, "a patient has more than one true class", where)


def _refuse(table: pd.DataFrame, wrong: "pd.Series | np.ndarray", what: str, where: str) -> None:
    bad = table.loc[np.asarray(wrong, bool)]
    if len(bad):
        raise DataError(f"{what} ({len(bad)} rows, for example {_examples(bad)})", where=where)


def _examples(bad: pd.DataFrame) -> str:
    rows: Iterable[tuple] = bad[["patient", "task", "role", "repeat", "fold"]].head(3).itertuples(index=False)
    return "; ".join(f"{patient!r} task {task} {role} fold {r}-{k}" for patient, task, role, r, k in rows)
