"""Columns of the clinical tables that nothing is learned from: what patients are grouped by in an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.cohorts.clinical_tables import read_clinical
from equipoise.datasets.cohorts.cohort_tables import merge_rows
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import CohortSource, Columns
from equipoise.datasets.suggestions import nearest
from equipoise.datasets.tables.reading import MISSING

if TYPE_CHECKING:
    import pandas as pd


def patient_columns(
    sources: Sequence[CohortSource], names: Sequence[str], columns: Columns | None, base: Path, where: str
) -> pd.DataFrame:
    """Values of some columns for all patients of all cohorts.

    Parameters
    ----------
    sources
        Cohorts of the study.
    names
        Columns of their clinical tables; a cohort may lack some.
    columns, base
        As in :func:`~equipoise.datasets.cohorts.cohort.load_cohorts`.
    where
        Setting that names the columns, for messages.

    Returns
    -------
    Text indexed by patient, NaN where it is not known or where the rows of the patient contradict.

    Raises
    ------
    DataError
        If no cohort has a column.
    """
    import pandas as pd

    parts, known = [], []
    for source in sources:
        clinical = read_clinical(
            source.clinical_tables, (source.columns or Columns()).or_else(columns), base, source.name
        )
        known += list(clinical.table.columns)
        present = [name for name in names if name in clinical.table.columns]
        merged, conflicts = merge_rows(clinical.table, clinical.key, present)
        merged = merged.where(~merged.isin([*MISSING, ""]))
        merged.loc[merged.index.isin(list(conflicts))] = None
        parts.append(merged.reindex(columns=list(names)))
    for name in names:
        if name not in known:
            raise DataError(
                f"no cohort has the column {name!r}{nearest(name, dict.fromkeys(known))}",
                where=where,
                fix="correct the column, or 'rename' the column of the table",
            )
    table = pd.concat(parts)
    return table[~table.index.duplicated()].astype(object)
