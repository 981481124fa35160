"""Covariates of the clinical tables as one matrix of numbers, like omics: NaN = missing, no row = none at all.

A number stays a column; a category becomes columns ``COLUMN=VALUE`` of 0 and 1 over all values that occur,
all NaN for a patient without one. Which of them a model reads is decided on training patients
(:mod:`equipoise.datasets.omics.fitting`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.params import Covariate
from equipoise.datasets.params import label_key
from equipoise.datasets.suggestions import nearest, value_counts
from equipoise.datasets.tables.plausibility import check_plausible
from equipoise.datasets.tables.reading import MISSING
from equipoise.datasets.tables.targets import parse_number

if TYPE_CHECKING:
    import pandas as pd

#: A category with more values than this is a number or a key.
MAX_CATEGORY_VALUES = 50


def covariate_table(
    labels: Sequence[tuple[str, pd.DataFrame]],
    covariates: Sequence[Covariate],
    everything: Sequence[str] = (),
) -> tuple[pd.DataFrame, list[str]]:
    """Covariates of all cohorts.

    Parameters
    ----------
    labels
        (cohort, text indexed by patient, with the columns of the covariates that its table has).
    covariates
        Which columns and what they hold.
    everything
        All columns of the clinical tables, for suggestions.

    Returns
    -------
    table, notes
        float32 [patients, columns]; patients without any value have no row.

    Raises
    ------
    DataError
        If no cohort has a column, most of a column of numbers is text, numbers look as if they had lost their
        decimal point, or a category has more than 50 values.
    """
    import pandas as pd

    everybody = pd.Index([patient for _, part in labels for patient in part.index], name="patient")
    columns: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for covariate in covariates:
        text, lacking = _text(labels, covariate.column, everything)
        notes += [
            f"covariate {covariate.column!r}: cohort {name} has no such column; missing for its patients"
            for name in lacking
        ]
        known = [t not in MISSING and label_key(t) not in covariate.missing for t in text]
        if covariate.type == "number":
            columns[covariate.column], odd = _numbers(text, known, covariate)
            _check_ranges(columns[covariate.column], labels, covariate)
            if odd:
                notes.append(
                    f"covariate {covariate.column!r}: {len(odd)} values are no numbers and count as missing: "
                    f"{value_counts(odd, 5)}"
                )
        else:
            columns |= _values(text, known, covariate)
    table = pd.DataFrame(columns, index=everybody, dtype=np.float32)
    absent = table.isna().all(axis=1)
    if absent.any():
        notes.append(f"clinical: {int(absent.sum())} of {len(table)} patients have no covariate at all")
    return table[~absent], notes


def _text(
    labels: Sequence[tuple[str, pd.DataFrame]], column: str, everything: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The column of all cohorts, empty where a cohort lacks it, and the cohorts that do."""
    lacking = [name for name, part in labels if column not in part.columns]
    if len(lacking) == len(labels):
        raise DataError(
            f"no cohort has the column {column!r}{nearest(column, everything)}",
            where="tables.clinical",
            fix="correct the column, or 'rename' the column of the table",
        )
    parts = [part[column].astype(str) if column in part else [""] * len(part) for _, part in labels]
    return [text for part in parts for text in part], lacking


def _numbers(text: list[str], known: list[bool], covariate: Covariate) -> tuple[np.ndarray, list[str]]:
    """[n] numbers, and what is neither a number nor missing."""
    parsed = [parse_number(t) if there else None for t, there in zip(text, known, strict=True)]
    odd = [t for t, there, n in zip(text, known, parsed, strict=True) if there and n is None]
    if len(odd) > sum(number is not None for number in parsed):
        raise DataError(
            f"{len(odd)} of {len(text)} values are not numbers: {value_counts(odd, 5)}",
            where=f"covariate {covariate.column!r}",
            fix=f"write {{column: {covariate.column}, type: category}}, or name another column",
        )
    return np.array([np.nan if number is None else number for number in parsed]), odd


def _check_ranges(
    values: np.ndarray, labels: Sequence[tuple[str, pd.DataFrame]], covariate: Covariate
) -> None:
    start = 0
    for name, part in labels:
        cohort_values = values[start : start + len(part)]
        start += len(part)
        where = f"covariate {covariate.column!r}, cohort {name}"
        check_plausible(cohort_values, [str(p) for p in part.index], where, allow=covariate.allow_wide_range)


def _values(text: list[str], known: list[bool], covariate: Covariate) -> dict[str, np.ndarray]:
    """``COLUMN=VALUE`` → [n] 0 and 1, NaN where the value is missing."""
    keys = [label_key(t) if there else None for t, there in zip(text, known, strict=True)]
    values = sorted({key for key in keys if key is not None})
    if len(values) > MAX_CATEGORY_VALUES:
        raise DataError(
            f"a category with {len(values)} values: {', '.join(map(repr, values[:5]))}, …",
            where=f"covariate {covariate.column!r}",
            fix=f"write {{column: {covariate.column}, type: number}} if it is one, or name another column",
        )
    missing = np.array([key is None for key in keys])
    return {
        f"{covariate.column}={value}": np.where(missing, np.nan, [float(key == value) for key in keys])
        for value in values
    }
