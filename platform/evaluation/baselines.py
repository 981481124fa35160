"""Baselines beside the model's scores: their predictions in one file, their main metric and the model's lead.

``baselines.parquet`` has the columns of the predictions table behind the name of the baseline. It is a file of its own:
the predictions table is one model's, and all that reads it (metrics, exports, comparisons of runs) relies on that.
``baselines.csv`` is computed from both. What the branches of a model say alone is kept and compared in the same way
(``branches.parquet``, ``branches.csv``, :mod:`equipoise.platform.evaluation.branches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.estimates import metric_results, positives
from equipoise.platform.evaluation.evaluate import all_samples
from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.paired import EvaluatedMetric, difference
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import COLUMNS, validate
from equipoise.platform.evaluation.samples import ALL, MODEL

#: Columns of the table: the main metric of a baseline with its interval, and the model's value minus it with
#: the interval and p of the paired test.
BASELINE_COLUMNS = (
    "role", "cohort", "task", "kind", "predictor", "metric", "value", "low", "high", "n", "n_pos",
    "lead", "lead_low", "lead_high", "p", "method", "note",
)  # fmt: skip
_NUMBERS = ("value", "low", "high", "n", "n_pos", "lead", "lead_low", "lead_high", "p")

_Key = tuple[str, str, str, str]


def evaluate_baselines(
    predictions: pd.DataFrame,
    baselines: Mapping[str, pd.DataFrame],
    params: EvaluationParams,
    seed: int,
    also: Sequence[str] = (),
) -> pd.DataFrame:
    """The main metric of every baseline (or branch), over all patients of a role and within each cohort.

    Parameters
    ----------
    predictions
        The model's predictions table.
    baselines
        Baseline → its predictions of the same patients; it may lack tasks.
    params, seed
        As for the model (:func:`~equipoise.platform.evaluation.evaluate.evaluate`).
    also
        Metrics beside the main one; ``sensitivity`` of a multiclass task stands for its balanced accuracy.
    """
    model = dict(_main_metrics(predictions, params, seed, also))
    rows = []
    for name, table in baselines.items():
        for key, one in _main_metrics(table, params, seed, also):
            result, sample = one.result, one.sample
            row = {
                "role": key[0], "cohort": key[1], "task": key[2], "kind": sample.kind, "predictor": name,
                "metric": result.metric, "value": result.estimate.value,
                "low": result.interval.low, "high": result.interval.high,
                "n": len(sample.strata), "n_pos": _positives(one), "note": result.note,
            }  # fmt: skip
            if key in model:
                test, low, high, method, note = difference(model[key], one, params.confidence)
                row |= {
                    "lead": test.difference,
                    "lead_low": low,
                    "lead_high": high,
                    "p": test.p,
                    "method": method,
                }
                row["note"] = "; ".join(part for part in (result.note, note) if part)
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(BASELINE_COLUMNS))
    return table.astype(dict.fromkeys(_NUMBERS, float) | {"n": "Int64", "n_pos": "Int64"})


def _main_metrics(
    predictions: pd.DataFrame, params: EvaluationParams, seed: int, also: Sequence[str]
) -> Iterator[tuple[_Key, EvaluatedMetric]]:
    for sample in all_samples(predictions.assign(site=ALL), params):  # sites get no row of their own
        if sample.role == "val" or sample.site != ALL or sample.predictor != MODEL:
            continue
        for result in metric_results(sample, params, seed, [PRIMARY[sample.kind], *also]):
            if result.class_name == "":
                key = (sample.role, sample.cohort, sample.task, result.metric)
                yield key, EvaluatedMetric(sample, result)


def _positives(one: EvaluatedMetric) -> float:
    """Distinct positives or events; NaN where there is no such thing."""
    column = one.result.column
    if column is None or one.sample.kind == "regression":
        return float("nan")
    if len(one.sample.groups) == 1:
        return float(positives(one.sample, one.sample.groups[0], column) or 0)
    known: set[int] = set()
    for group in one.sample.groups:
        truth = group.event if one.sample.kind == "survival" else group.target[:, column]
        known |= set(group.patient[np.asarray(truth) == 1].tolist())
    return float(len(known))


def write_baselines(
    baselines: Mapping[str, pd.DataFrame], table: pd.DataFrame, folder: Path, stem: str = "baselines"
) -> None:
    """Write ``<stem>.parquet`` and ``<stem>.csv`` below ``folder``, each atomically."""
    from equipoise.datasets.atomic_io import atomic_path

    folder.mkdir(parents=True, exist_ok=True)
    write_predictors(baselines, folder / f"{stem}.parquet")
    with atomic_path(folder / f"{stem}.csv") as temporary:
        table.to_csv(temporary, index=False)


def write_predictors(predictors: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Write predictions of several predictors as one table, the name of the predictor in the first column."""
    from equipoise.datasets.atomic_io import atomic_path

    parts = [validate(rows).assign(predictor=name) for name, rows in predictors.items()]
    empty = pd.DataFrame(
        {column: pd.Series(dtype=kind) for column, kind in COLUMNS.items()} | {"predictor": []}
    )
    scored = pd.concat(parts, ignore_index=True) if parts else empty
    with atomic_path(path) as temporary:
        scored[["predictor", *COLUMNS]].to_parquet(temporary, index=False, compression="zstd")


def read_predictors(path: Path) -> dict[str, pd.DataFrame]:
    """Predictor → its predictions, from a table of :func:`write_predictors`.

    Raises
    ------
    DataError
        If the file is no such table.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as broken:
        raise DataError(f"not a readable Parquet file: {broken}", where=str(path)) from broken
    if "predictor" not in table:
        raise DataError("a table of several predictors lacks the column predictor", where=str(path))
    return {
        str(name): validate(rows.drop(columns="predictor"), str(path))
        for name, rows in table.groupby("predictor", sort=False)
    }


def read_baselines(path: Path) -> pd.DataFrame:
    """Read ``baselines.csv``, text columns as text.

    Raises
    ------
    DataError
        If columns are missing.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [c for c in BASELINE_COLUMNS if c not in table]:
        raise DataError(
            f"baselines lack the columns {', '.join(missing)}",
            where=str(path),
            fix="run 'equipoise evaluate'",
        )
    for column in _NUMBERS:
        table[column] = table[column].where(table[column] != "").astype(float)
    return table.astype({"n": "Int64", "n_pos": "Int64"})
