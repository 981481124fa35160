"""Tables beside the metrics: calibration, decision curves, operating points, survival at a horizon, subgroups.

All are computed from the predictions table alone (subgroups: and from their groups), written below ``evaluation/`` and
read again by the report.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from equipoise.datasets.atomic_io import atomic_path
from equipoise.platform.evaluation.calibration_table import (
    CALIBRATION_COLUMNS,
    CURVE_COLUMNS,
    calibration_curves,
    calibration_table,
)
from equipoise.platform.evaluation.csv_tables import read_table, write_table
from equipoise.platform.evaluation.decision_curves import DECISION_COLUMNS, decision_curves
from equipoise.platform.evaluation.operating_points import OPERATING_COLUMNS, operating_points
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import pooled_samples
from equipoise.platform.evaluation.predictions import kind_of
from equipoise.platform.evaluation.samples import Sample
from equipoise.platform.evaluation.subgroups import SUBGROUP_COLUMNS, subgroup_table
from equipoise.platform.evaluation.survival_calibration import SURVIVAL_COLUMNS, survival_calibration
from equipoise.platform.evaluation.survival_decisions import (
    SURVIVAL_DECISION_COLUMNS,
    survival_decision_curves,
)


class DetailTable(NamedTuple):
    """What a table is, what computes it, its columns, and the kinds of tasks it is about."""

    description: str
    compute: Callable[[Sequence[Sample], pd.DataFrame, EvaluationParams], pd.DataFrame]
    columns: Sequence[str]
    kinds: frozenset[str]


def _of_samples(
    compute: Callable[[Sequence[Sample], EvaluationParams], pd.DataFrame],
) -> Callable[[Sequence[Sample], pd.DataFrame, EvaluationParams], pd.DataFrame]:
    """A table that needs nothing but the samples."""
    return lambda samples, predictions, params: compute(samples, params)


_CLASSES = frozenset({"binary", "multiclass"})
#: Stem of the file below ``evaluation/`` → table.
DETAIL_TABLES: Mapping[str, DetailTable] = MappingProxyType(
    {
        "calibration": DetailTable(
            "calibration of probabilities", _of_samples(calibration_table), CALIBRATION_COLUMNS, _CLASSES
        ),
        "calibration_curves": DetailTable(
            "calibration curves", _of_samples(calibration_curves), CURVE_COLUMNS, _CLASSES
        ),
        "decision_curves": DetailTable(
            "decision curves", _of_samples(decision_curves), DECISION_COLUMNS, _CLASSES
        ),
        "operating_points": DetailTable(
            "decisions at operating points", operating_points, OPERATING_COLUMNS, frozenset({"binary"})
        ),
        "survival_calibration": DetailTable(
            "predicted and observed survival at a horizon",
            _of_samples(survival_calibration),
            SURVIVAL_COLUMNS,
            frozenset({"survival"}),
        ),
        "survival_decision_curves": DetailTable(
            "decision curves at a horizon",
            _of_samples(survival_decision_curves),
            SURVIVAL_DECISION_COLUMNS,
            frozenset({"survival"}),
        ),
    }
)
SUBGROUPS = "subgroups"
_TEXTS = frozenset(
    {"role", "cohort", "task", "class", "kind", "metric", "point", "subgroup", "group", "note"}
)


def write_details(
    predictions: pd.DataFrame,
    folder: Path,
    params: EvaluationParams,
    subgroups: pd.DataFrame | None = None,
) -> list[Path]:
    """Compute and write all tables for which the predictions have a task; others of an earlier run are removed.

    Parameters
    ----------
    predictions
        The predictions table, validated.
    folder
        The folder ``evaluation/``.
    params
        Parameters of the evaluation.
    subgroups
        Groups of the patients (:func:`~equipoise.platform.evaluation.subgroups.subgroup_values`); they are kept in
        ``subgroups.parquet``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {kind_of(rows) for _, rows in predictions.groupby("task", sort=True)}
    samples = pooled_samples(predictions, params)
    written = []
    for stem, table in DETAIL_TABLES.items():
        path = folder / f"{stem}.csv"
        if kinds & table.kinds:
            written.append(write_table(table.compute(samples, predictions, params), path))
        else:
            path.unlink(missing_ok=True)
    values = folder / f"{SUBGROUPS}.parquet"
    if subgroups is None:
        for path in (values, folder / f"{SUBGROUPS}.csv"):
            path.unlink(missing_ok=True)
        return written
    with atomic_path(values) as temporary:
        subgroups.rename_axis("patient").reset_index().to_parquet(temporary, index=False)
    return [
        *written,
        write_table(subgroup_table(samples, predictions, subgroups, params), folder / f"{SUBGROUPS}.csv"),
    ]


def read_detail(path: Path) -> pd.DataFrame:
    """Read one of the tables, with text columns as text: a cohort may be called ``NA``.

    Raises
    ------
    DataError
        If columns are missing.
    """
    columns = SUBGROUP_COLUMNS if path.stem == SUBGROUPS else DETAIL_TABLES[path.stem].columns
    return read_table(path, "the table", columns, [name for name in columns if name in _TEXTS])
