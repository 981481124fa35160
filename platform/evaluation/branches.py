"""What the branches of a model say alone, kept with the folds: predictions of the same patients, one table per fold.

A branch gives every patient a score; patients whose data lack the branch get the one of its learned token, so that the
branch ranks them equally. The table is made where the fold predicts and is used for the comparison of the model with
its branches only (:func:`~equipoise.platform.evaluation.baselines.evaluate_baselines`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from equipoise.platform.evaluation.baselines import read_predictors, write_predictors

#: File names of the tables of a fold: test patients, and external patients.
FOLD_BRANCHES, EXTERNAL_BRANCHES = "branches.parquet", "external_branches.parquet"
#: Stem of the files of a run.
STEM = "branches"


def write_fold_branches(branches: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Write the table atomically; no file for a model without branches."""
    path.unlink(missing_ok=True)
    if branches:
        write_predictors(branches, path)


def read_fold_branches(folders: Iterable[Path]) -> dict[str, pd.DataFrame]:
    """Branch → its predictions in all folds; empty if a fold has none, because its model has no branches."""
    parts: dict[str, list[pd.DataFrame]] = {}
    count = 0
    for folder in folders:
        count += 1
        if not (folder / FOLD_BRANCHES).exists():
            return {}
        tables = [read_predictors(folder / FOLD_BRANCHES)]
        if (folder / EXTERNAL_BRANCHES).exists():
            tables.append(read_predictors(folder / EXTERNAL_BRANCHES))
        for name in tables[0]:
            rows = [table[name] for table in tables if name in table]
            parts.setdefault(name, []).append(pd.concat(rows, ignore_index=True))
    return {name: pd.concat(of, ignore_index=True) for name, of in parts.items() if len(of) == count}
