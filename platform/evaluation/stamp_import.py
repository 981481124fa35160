"""Tables of predictions in STAMP's layout as our predictions table, so that metrics come with intervals.

Layouts as in :mod:`equipoise.platform.evaluation.stamp_export`: classification ``PATIENT, <task>, pred,
<task>_<class>…, loss``; regression ``PATIENT, <task>, pred, loss``; survival ``PATIENT, pred_score, time, event``.
STAMP writes one ``patient-preds.csv`` per split of a cross-validation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.cells import with_decimal_points
from equipoise.datasets.tables.files import read_grid
from equipoise.platform.evaluation.predictions import COLUMNS, read_predictions, validate

#: Columns of a survival table of STAMP.
_SURVIVAL = ("pred_score", "time", "event")
#: Names tables that are no files in messages.
_STAMP = "table in STAMP's layout"


def is_stamp(table: pd.DataFrame) -> bool:
    """Whether a table has STAMP's layout."""
    return "PATIENT" in table and ("pred" in table or set(_SURVIVAL) <= set(table))


def read_any(tables: Sequence[pd.DataFrame | str | Path], positive: str | None = None) -> pd.DataFrame:
    """Predictions in either layout as one predictions table.

    Parameters
    ----------
    tables
        Our predictions table alone, or STAMP's tables of one task, one per split: frames, Parquet or CSV files.
    positive
        Of a binary task in STAMP's layout: the class whose score counts.

    Raises
    ------
    DataError
        If a file cannot be read, has neither layout, or holds impossible values.
    """
    where = ", ".join(str(table) for table in tables if not isinstance(table, pd.DataFrame))
    try:
        frames = [each if isinstance(each, pd.DataFrame) else read_table(Path(each)) for each in tables]
        if len(frames) == 1 and "patient" in frames[0]:
            return validate(frames[0], where or "predictions")
        return predictions_from_stamp(frames, positive, where=where or _STAMP)
    except (ValueError, OSError) as broken:
        raise DataError(
            f"the predictions cannot be read: {str(broken).strip()}",
            where=where or "predictions",
            fix="see docs/api.md for the layouts of predictions",
        ) from broken


def read_table(path: Path) -> pd.DataFrame:
    """Read predictions in either layout: Parquet, or text with any delimiter and decimal mark.

    Raises
    ------
    DataError
        If the file is missing, is no table, or has no rows.
    """
    if path.suffix == ".parquet":
        return read_predictions(path)
    if not path.is_file():
        what = "this is a folder, not a table of predictions" if path.is_dir() else "no such file"
        raise DataError(what, where=str(path), fix="name the table of predictions")
    table = with_decimal_points(read_grid(path), None)
    if table.empty:
        raise DataError("the table has column names but no rows", where=str(path))
    # NA may be the name of a cohort or a class; only an empty cell is missing.
    table = table.mask(table == "").reset_index(drop=True)
    if "event" in table:
        table["event"] = table["event"].map(lambda cell: {"True": "1", "False": "0"}.get(cell, cell))
    return _empty_classes(table)


def _empty_classes(table: pd.DataFrame) -> pd.DataFrame:
    """The class of a regression or survival row is empty and not missing."""
    return table.assign(**{"class": table["class"].fillna("")}) if "class" in table else table


def predictions_from_stamp(
    folds: Sequence[pd.DataFrame],
    positive: str | None = None,
    cohort: str = "cohort",
    *,
    where: str = _STAMP,
) -> pd.DataFrame:
    """Tables of one task in STAMP's layout as one predictions table of role ``test``.

    Parameters
    ----------
    folds
        One table per split of a cross-validation, each with its test patients; a single table is a single fold.
    positive
        The class of a binary task whose score counts; without it, both classes get their own metrics.
    cohort
        Name of cohort and site in the result.
    where
        Names the tables in messages.

    Raises
    ------
    DataError
        If a table has another layout, the tables are not of one task, or ``positive`` is no class.
    """
    if not folds:
        raise DataError("no table of predictions was given")
    parts = [_long(table, positive).assign(fold=number) for number, table in enumerate(folds)]
    tasks = sorted({str(task) for part in parts for task in part["task"].unique()})
    if len(tasks) > 1:
        raise DataError(f"the tables are of several tasks: {', '.join(tasks)}", fix="give those of one task")
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.assign(cohort=cohort, site=cohort, repeat=0, role="test")
    return validate(rows[list(COLUMNS)], where)


def _long(table: pd.DataFrame, positive: str | None) -> pd.DataFrame:
    """One row per patient and class."""
    if not is_stamp(table):
        raise DataError(
            f"neither our predictions table nor STAMP's: columns {', '.join(map(str, table))}",
            fix="see docs/api.md for both layouts",
        )
    if set(_SURVIVAL) <= set(table):
        return _rows(table, "survival", "", table["pred_score"], None, table["time"], table["event"])
    task = _task_of(table)
    scores = [name for name in table if str(name).startswith(f"{task}_")]
    if not scores:
        return _rows(table, task, "", table["pred"], table[task])
    classes = [str(name).removeprefix(f"{task}_") for name in scores]
    if positive is not None:
        if positive not in classes or len(classes) != 2:
            raise DataError(
                f"positive={positive!r} is not one of two classes; the table has {', '.join(classes)}"
            )
        classes = [positive]
    truth = table[task]
    unknown = sorted(
        set(truth.dropna().astype(str)) - {str(name).removeprefix(f"{task}_") for name in scores}
    )
    if unknown:
        raise DataError(f"labels without a column of scores: {', '.join(unknown)}")
    parts = [
        _rows(table, task, name, table[f"{task}_{name}"], (truth.astype(str) == name).where(truth.notna()))
        for name in classes
    ]
    return pd.concat(parts, ignore_index=True)


def _task_of(table: pd.DataFrame) -> str:
    """The column that is none of STAMP's own and no class of another: the label."""
    others = [str(name) for name in table if name not in ("PATIENT", "pred", "loss")]
    tasks = [
        name for name in others if not any(name != task and name.startswith(f"{task}_") for task in others)
    ]
    if len(tasks) != 1:
        raise DataError(
            f"which column holds the label? {', '.join(tasks) or 'none does'}",
            fix="keep PATIENT, the label, pred, the scores of its classes, and loss",
        )
    return tasks[0]


def _rows(
    table: pd.DataFrame,
    task: str,
    name: str,
    score: pd.Series,
    target: pd.Series | None,
    time: pd.Series | None = None,
    event: pd.Series | None = None,
) -> pd.DataFrame:
    missing = np.full(len(table), np.nan)
    return pd.DataFrame(
        {
            "patient": table["PATIENT"].to_numpy(),
            "task": task,
            "class": name,
            "score": score.to_numpy(),
            "target": missing if target is None else target.to_numpy(float),
            "time": missing if time is None else time.to_numpy(),
            "event": missing if event is None else event.to_numpy(),
        }
    )
