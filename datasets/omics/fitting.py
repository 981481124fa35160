"""Transforms of all tables of a fold: fitted on its training patients, stored as plain data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.datasets.errors import DataWarning
from equipoise.datasets.omics.covariate_transform import CovariateTransform, fit_covariates
from equipoise.datasets.omics.params import CLINICAL, OmicsParams, RnaParams, TableParams
from equipoise.datasets.omics.transforms import MatrixTransform, choose_scale, fit_matrix

TableTransform = MatrixTransform | CovariateTransform


@dataclass
class TableRows:
    """Rows of one table, gathered patient by patient.

    Attributes
    ----------
    columns
        Names of the columns.
    values
        [G] per patient that has the table.
    cohorts
        Their cohorts.
    """

    columns: tuple[str, ...]
    values: list[np.ndarray] = field(default_factory=list)
    cohorts: list[str] = field(default_factory=list)


def fit_tables(tables: Mapping[str, TableRows], params: TableParams) -> dict[str, TableTransform]:
    """Modality → transform, fitted on the rows of training patients.

    Raises
    ------
    DataError
        If cohorts hold RNA on different scales.

    Warns
    -----
    DataWarning
        If no column of a table differs among training patients: the table is left out.
    """
    fitted: dict[str, TableTransform] = {}
    for modality, table in sorted(tables.items()):
        rows = np.stack(table.values)
        transform = _fit(modality, rows, table, params)
        if transform.names:
            fitted[modality] = transform
        else:
            warnings.warn(
                f"{modality}: no column differs among {len(rows)} training patients; the table is left out",
                DataWarning,
                stacklevel=2,
            )
    return fitted


def _fit(modality: str, rows: np.ndarray, table: TableRows, params: TableParams) -> TableTransform:
    if modality == CLINICAL:
        return fit_covariates(rows, table.columns, params.clinical)
    omics_params: OmicsParams = getattr(params, modality)
    if isinstance(omics_params, RnaParams):
        scale = (
            choose_scale(rows, table.cohorts, modality)
            if omics_params.transform == "auto"
            else omics_params.transform
        )
        return fit_matrix(
            rows, table.columns, scale=scale, clip=omics_params.clip, max_columns=omics_params.genes
        )
    return fit_matrix(rows, table.columns, standardise=modality != "mutation", max_columns=omics_params.genes)


def columns_of(count: int, columns: Sequence[str] | None) -> tuple[str, ...]:
    """Names of a row's columns; by position where a case was made without names."""
    return tuple(columns) if columns is not None else tuple(str(i) for i in range(count))


def transform_to_json(transform: TableTransform) -> dict[str, Any]:
    """Plain data, with the kind of the transform."""
    kind = "covariates" if isinstance(transform, CovariateTransform) else "matrix"
    return {"kind": kind, **transform.to_json()}


def transform_from_json(data: dict[str, Any]) -> TableTransform:
    """The inverse of :func:`transform_to_json`."""
    kind = CovariateTransform if data["kind"] == "covariates" else MatrixTransform
    return kind.from_json(data)
