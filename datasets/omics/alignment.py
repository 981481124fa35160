"""Matrices of several cohorts as one, by column name: models are built for the columns of the development cohorts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.errors import DataError, DataWarning

if TYPE_CHECKING:
    import pandas as pd

#: Share of columns that an external cohort may lack without a warning.
MAX_MISSING_SHARE = 0.1


def align(
    modality: str, matrices: Mapping[str, pd.DataFrame], develop: frozenset[str]
) -> tuple[pd.DataFrame | None, list[str]]:
    """One matrix over all cohorts, with the columns that every development cohort has.

    External cohorts have no influence: columns that they lack are NaN there, to be filled with what is fitted on
    training patients, and columns that only they have are not read.

    Parameters
    ----------
    modality
        For messages.
    matrices
        Cohort → float32 [patients, columns].
    develop
        Names of the development cohorts.

    Returns
    -------
    matrix, notes
        ``None`` where no development cohort has the modality.

    Raises
    ------
    DataError
        If cohorts share no column.

    Warns
    -----
    DataWarning
        If an external cohort lacks more than a tenth of the columns.
    """
    import pandas as pd

    development = [name for name in matrices if name in develop]
    if not development:
        return None, [f"{modality}: no development cohort has it; it is not read"]
    columns = [
        c
        for c in matrices[development[0]].columns
        if all(c in matrices[name].columns for name in development)
    ]
    if not columns or not all(set(columns) & set(matrix.columns) for matrix in matrices.values()):
        examples = "; ".join(f"{name}: {', '.join(map(str, m.columns[:3]))}" for name, m in matrices.items())
        raise DataError(
            f"the cohorts share no {modality} column ({examples})",
            where=f"omics {modality!r}",
            fix="use one naming of genes (symbols or Ensembl ids) in all cohorts",
        )
    notes = []
    lost = {name: len(matrices[name].columns) - len(columns) for name in development}
    if any(lost.values()):
        which = ", ".join(f"{count} of {name}" for name, count in lost.items() if count)
        notes.append(f"{modality}: {len(columns)} columns are in every development cohort; left out: {which}")
    gaps = 0
    for name, matrix in matrices.items():
        known = [column for column in columns if column in matrix.columns]
        gaps += int(matrix[known].isna().sum().sum())
        if missing := len(columns) - len(known):
            note = f"cohort {name} lacks {missing} of {len(columns)} {modality} columns, e.g. {_first(columns, matrix)}"
            note += "; they are filled with training medians"
            notes.append(note)
            if missing > MAX_MISSING_SHARE * len(columns):
                warnings.warn(note, DataWarning, stacklevel=2)
    if gaps:
        notes.append(f"{modality}: {gaps} single values are missing (NaN)")
    parts = [matrix.reindex(columns=columns).to_numpy(np.float32) for matrix in matrices.values()]
    patients = pd.Index([p for matrix in matrices.values() for p in matrix.index], name="patient")
    return pd.DataFrame(np.concatenate(parts), index=patients, columns=columns), notes


def row_digests(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Patient → text that changes whenever a value or the columns of one of the patient's rows do."""
    parts: dict[str, list[str]] = {}
    for modality, table in sorted(tables.items()):
        names = hashlib.sha256("\n".join(map(str, table.columns)).encode()).digest()
        for patient, row in zip(table.index, table.to_numpy(np.float32), strict=True):
            digest = hashlib.sha256(names + np.ascontiguousarray(row).tobytes()).hexdigest()[:16]
            parts.setdefault(patient, []).append(f"{modality} {digest}")
    return {patient: f" {hashes}" for patient, hashes in parts.items()}


def _first(columns: list[str], matrix: pd.DataFrame) -> str:
    return ", ".join([column for column in columns if column not in matrix.columns][:3])
