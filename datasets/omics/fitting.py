"""Transforms of all tables of a fold: fitted on its training patients, stored as plain data.

Numbers are standardised (:mod:`equipoise.datasets.omics.transforms`). A table of covariates has one column per number
and ``COLUMN=VALUE`` columns of 0 and 1 per category (:mod:`equipoise.datasets.omics.covariates`); gaps are indicated,
and values that no training patient has become ``unknown``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from equipoise.datasets.errors import DataWarning
from equipoise.datasets.omics.components import ComponentTransform, fit_components, fit_set_scores
from equipoise.datasets.omics.gene_sets import GeneSets, within
from equipoise.datasets.omics.logarithms import common_scale
from equipoise.datasets.omics.params import CLINICAL, Covariate, OmicsParams, RnaParams, TableParams
from equipoise.datasets.omics.per_cohort import CohortTransforms, fit_matrix_per_cohort
from equipoise.datasets.omics.statistics import Sums, TableSums
from equipoise.datasets.omics.transforms import MatrixTransform, aligned, fit_matrix

#: Fence around numbers, in spreads.
CLIP = 5.0


@dataclass(frozen=True)
class Category:
    """The values of a covariate that training patients have.

    Attributes
    ----------
    column
        Name of the covariate.
    values
        Values with a column of 0 and 1 each.
    unknown
        Whether some training patient lacks the value: only then has ``unknown`` a column of its own, because
        nothing could be learned of it otherwise.
    shares
        How frequent the values are in training: what stands in for a patient without a known value where
        ``unknown`` has no column.
    """

    column: str
    values: tuple[str, ...]
    unknown: bool
    shares: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """``COLUMN=VALUE`` of the columns that come out."""
        return tuple(f"{self.column}={v}" for v in (*self.values, *(["unknown"] if self.unknown else [])))

    def encode(self, row: dict[str, float]) -> list[float]:
        """0 and 1 for the values, then for unknown."""
        seen = [float(row.get(f"{self.column}={value}") == 1) for value in self.values]
        if any(seen):
            return [*seen, *([0.0] if self.unknown else [])]
        return [*([0.0] * len(self.values)), 1.0] if self.unknown else list(self.shares)


@dataclass(frozen=True)
class CovariateTransform:
    """What is fitted on training patients for covariates.

    Attributes
    ----------
    numbers
        Transform of the numeric columns, ``None`` if there is none.
    gaps
        Numeric columns with an indicator of their own: some training patient lacks the value.
    categories
        The others.
    """

    #: Whether cohorts are prepared apart.
    per_cohort: ClassVar[bool] = False

    numbers: MatrixTransform | None
    gaps: tuple[str, ...]
    categories: tuple[Category, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that come out."""
        numbers = self.numbers.names if self.numbers else ()
        indicators = tuple(f"{column} missing" for column in self.gaps)
        return (*numbers, *indicators, *(name for category in self.categories for name in category.names))

    def apply(self, values: np.ndarray, columns: tuple[str, ...], cohort: str | None = None) -> np.ndarray:
        """One patient's row under these column names as [K] float32 without gaps; the cohort changes nothing."""
        row = dict(zip(columns, np.asarray(values, float).tolist(), strict=True))
        parts: list[float] = []
        if self.numbers is not None:
            names = self.numbers.columns
            numbers = np.array([row.get(name, np.nan) for name in names], np.float32)
            parts += self.numbers.apply(numbers, names).tolist()
        parts += [float(np.isnan(row.get(column, np.nan))) for column in self.gaps]
        for category in self.categories:
            parts += category.encode(row)
        return np.array(parts, np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "numbers": None if self.numbers is None else self.numbers.to_json(),
            "gaps": list(self.gaps),
            "categories": [
                {"column": c.column, "values": list(c.values), "unknown": c.unknown, "shares": list(c.shares)}
                for c in self.categories
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CovariateTransform:
        """The transform that :meth:`to_json` wrote."""
        numbers = None if data["numbers"] is None else MatrixTransform.from_json(data["numbers"])
        categories = (
            Category(c["column"], tuple(c["values"]), c["unknown"], tuple(c["shares"]))
            for c in data["categories"]
        )
        return cls(numbers, tuple(data["gaps"]), tuple(categories))


def fit_covariates(table: TableSums, covariates: Sequence[Covariate]) -> CovariateTransform:
    """Fit on training patients.

    Parameters
    ----------
    table
        Sums over training patients that have a covariate.
    covariates
        As the study names them; in this order columns come out.
    """
    numeric = tuple(c.column for c in covariates if c.type == "number" and c.column in table.columns)
    numbers = None
    gaps: tuple[str, ...] = ()
    if numeric:
        values = table.select(numeric)
        numbers = fit_matrix(values, clip=CLIP)
        counts = values.total(_gap_counts)
        some = (counts["missing"] > 0) & (counts["missing"] < counts["n"])
        gaps = tuple(name for name, gap in zip(numeric, some, strict=True) if gap)
    candidates = [_category(table, c.column) for c in covariates if c.type == "category"]
    categories = tuple(category for category in candidates if len(category.names) > 1)
    return CovariateTransform(numbers if numbers is not None and numbers.names else None, gaps, categories)


def _gap_counts(rows: np.ndarray) -> Sums:
    return {
        "missing": np.isnan(rows).sum(axis=0).astype(np.float64),
        "n": np.full(rows.shape[1], float(len(rows))),
    }


def _value_counts(rows: np.ndarray) -> Sums:
    counts = np.nansum(rows.astype(np.float64), axis=0)
    unknown = float((np.nansum(rows, axis=1) == 0).sum()) if rows.shape[1] else float(len(rows))
    return {"counts": counts, "unknown": np.array([unknown])}


def _category(table: TableSums, column: str) -> Category:
    """Values that training patients have; one that all have is constant and goes with its category."""
    names = tuple(name for name in table.columns if name.startswith(f"{column}="))
    sums = table.select(names).total(_value_counts)
    present = [(name, n) for name, n in zip(names, sums["counts"].tolist(), strict=True) if n > 0]
    known = max(sum(n for _, n in present), 1)
    values = tuple(name.removeprefix(f"{column}=") for name, _ in present)
    return Category(column, values, bool(sums["unknown"][0] > 0), tuple(n / known for _, n in present))


#: Names of columns and [G] values of every patient of a cohort.
RowsOfCohort = Sequence[tuple[tuple[str, ...], np.ndarray]]
TableTransform = MatrixTransform | CohortTransforms | ComponentTransform | CovariateTransform
#: Kind of a transform in a file → its class.
KINDS: dict[str, type[TableTransform]] = {
    "matrix": MatrixTransform,
    "per_cohort": CohortTransforms,
    "components": ComponentTransform,
    "covariates": CovariateTransform,
}


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


def columns_of_sets(
    tables: Mapping[str, TableTransform], params: TableParams
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Modality → the columns of each of its gene sets; without those whose columns are no genes.

    Sets with fewer than ``min_genes`` of the columns that are left are left out.
    """
    chosen, table = params.rna.gene_sets, tables.get("rna")
    if chosen is None or table is None or chosen.use != "genes" or params.rna.components is not None:
        return {}
    at = {name: i for i, name in enumerate(table.names)}
    sets = within(chosen.sets, at.keys(), chosen.min_genes)
    return {"rna": tuple(tuple(at[gene] for gene in genes) for genes in sets.values())}


def _fit(modality: str, table: TableSums, params: TableParams) -> TableTransform:
    if modality == CLINICAL:
        return fit_covariates(table, params.clinical)
    settings: OmicsParams = getattr(params, modality)
    if isinstance(settings, RnaParams):
        chosen = settings.gene_sets
        sets = None if chosen is None else within(chosen.sets, table.columns, chosen.min_genes)
        fitted = _fit_rna(modality, table, settings, sets)
        if chosen is not None and sets is not None and chosen.use == "scores" and fitted.names:
            return fit_set_scores(table, fitted, sets)
    else:
        fitted = fit_matrix(table, standardise=modality != "mutation", max_columns=settings.genes)
    if settings.components is None or not fitted.names:
        return fitted
    return fit_components(table, fitted, settings.components)


def _fit_rna(
    modality: str, table: TableSums, settings: RnaParams, sets: GeneSets | None
) -> MatrixTransform | CohortTransforms:
    scale = common_scale(table.scales(), modality) if settings.transform == "auto" else settings.transform
    options: dict[str, Any] = {
        "scale": scale,
        "clip": settings.clip,
        "limit": settings.clip_standardised,
        "max_columns": settings.genes,
        "wanted": None if sets is None else frozenset(gene for genes in sets.values() for gene in genes),
    }
    if settings.standardise == "per_cohort":
        return fit_matrix_per_cohort(table, **options)
    return fit_matrix(table, **options)


def with_cohorts_of(
    transforms: Mapping[str, TableTransform], rows: Mapping[str, Mapping[str, RowsOfCohort]]
) -> dict[str, TableTransform]:
    """Transforms that also know these cohorts, where a table is standardised per cohort; the others as they are.

    Parameters
    ----------
    transforms
        Modality → transform, fitted on training patients.
    rows
        Modality → cohort → names of columns and [G] values of its patients.

    Raises
    ------
    DataError
        If a cohort that is not known has fewer than ten patients.
    """
    result = dict(transforms)
    for modality, transform in transforms.items():
        part = transform.before if isinstance(transform, ComponentTransform) else transform
        if not isinstance(part, CohortTransforms):
            continue
        for cohort, patients in rows.get(modality, {}).items():
            if cohort not in part.cohorts:
                values = np.stack([aligned(row, names, part.columns) for names, row in patients])
                part = part.with_cohort(cohort, values)
        result[modality] = (
            replace(transform, before=part) if isinstance(transform, ComponentTransform) else part
        )
    return result


def columns_of(count: int, columns: Sequence[str] | None) -> tuple[str, ...]:
    """Names of a row's columns; by position where a case was made without names."""
    return tuple(columns) if columns is not None else tuple(str(i) for i in range(count))


def transform_to_json(transform: TableTransform) -> dict[str, Any]:
    """Plain data, with the kind of the transform."""
    kind = next(name for name, kind in KINDS.items() if isinstance(transform, kind))
    return {"kind": kind, **transform.to_json()}


def transform_from_json(data: dict[str, Any]) -> TableTransform:
    """The inverse of :func:`transform_to_json`."""
    return KINDS[data["kind"]].from_json(data)
