"""Writing and reading the metrics table: ``metrics.csv`` for users, ``metrics.json`` for programs."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.evaluate import METRIC_COLUMNS, NUMBERS
from equipoise.platform.evaluation.params import EvaluationParams

_TEXT = [c for c in METRIC_COLUMNS if c not in (*NUMBERS, "n", "n_pos")]
#: Columns that tables of earlier versions lack: their intervals name no estimand.
_ADDED = ("low_procedure", "high_procedure", "estimand")


def write_metrics(metrics: pd.DataFrame, folder: Path, params: EvaluationParams | None = None) -> list[Path]:
    """Write both files below ``folder`` atomically; NaN is an empty cell in CSV and null in JSON.

    ``params`` are the parameters of the evaluation; they are written to the JSON file.
    """
    from equipoise.datasets.atomic_io import atomic_path

    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "version": 1,
        "parameters": params.model_dump(mode="json") if params else None,
        "metrics": [{k: _plain(v) for k, v in row.items()} for row in metrics.to_dict("records")],
    }
    with atomic_path(folder / "metrics.csv") as temporary:
        metrics.to_csv(temporary, index=False)
    with atomic_path(folder / "metrics.json") as temporary:
        Path(temporary).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return [folder / "metrics.csv", folder / "metrics.json"]


def read_metrics(path: Path) -> pd.DataFrame:
    """Read ``metrics.csv`` with text columns as text: a cohort may be called ``NA``.

    Raises
    ------
    DataError
        If columns are missing.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [c for c in METRIC_COLUMNS if c not in table and c not in _ADDED]
    if missing:
        raise DataError(
            f"metrics lack the columns {', '.join(missing)}", where=str(path), fix="run 'equipoise evaluate'"
        )
    for column in METRIC_COLUMNS:
        if column not in table:
            table[column] = ""
        if column not in _TEXT:
            table[column] = table[column].where(table[column] != "").astype(float)
    return table[list(METRIC_COLUMNS)].astype({"n": "Int64", "n_pos": "Int64"})


def _plain(value: Any) -> Any:
    """A JSON value: numpy numbers become Python's, missing becomes None."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value
