"""Transforms of all tables of a fold: fitted on its training patients, stored as plain data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.datasets.errors import DataWarning
from equipoise.datasets.omics.covariate_transform import CovariateTransform, fit_covariates
from equipoise.datasets.omics.params import CLINICAL, OmicsParams, RnaParams, TableParams
from equipoise.datasets.omics.statistics import TableSums, common_scale
from equipoise.datasets.omics.transforms import MatrixTransform, fit_matrix

TableTransform = MatrixTransform | CovariateTransform


def fit_tables(tables: Mapping[str, TableSums], params: TableParams) -> dict[str, TableTransform]:
    """Modality → transform, fitted on sums over training patients.

    Raises
    ------
    DataError
        If cohorts or clients hold RNA on different scales.

    Warns
    -----
    DataWarning
        If no column of a table differs among training patients: the table is left out.
    """
    fitted: dict[str, TableTransform] = {}
    for modality, table in sorted(tables.items()):
        transform = _fit(modality, table, params)
        if transform.names:
            fitted[modality] = transform
        else:
            warnings.warn(
                f"{modality}: no column differs among training patients; the table is left out",
                DataWarning,
                stacklevel=2,
            )
    return fitted


def _fit(modality: str, table: TableSums, params: TableParams) -> TableTransform:
    if modality == CLINICAL:
        return fit_covariates(table, params.clinical)
    settings: OmicsParams = getattr(params, modality)
    if not isinstance(settings, RnaParams):
        return fit_matrix(table, standardise=modality != "mutation", max_columns=settings.genes)
    scale = common_scale(table.scales(), modality) if settings.transform == "auto" else settings.transform
    return fit_matrix(table, scale=scale, clip=settings.clip, max_columns=settings.genes)


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
