"""Transforms that every cohort has its own of: no difference between cohorts is left in a column's mean and spread."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.logarithms import Scale
from equipoise.datasets.omics.statistics import LocalTable, TableSums
from equipoise.datasets.omics.transforms import (
    MatrixTransform,
    WholeFit,
    among,
    fit_all_columns,
    most_variable,
)

#: Fewest patients of a cohort from which it is standardised.
MIN_PATIENTS = 10


@dataclass(frozen=True)
class CohortTransforms:
    """One transform per cohort, fitted on its own patients; all have the same columns.

    Attributes
    ----------
    cohorts
        Cohort → transform.
    settings
        Scale, fence and limit, with which further cohorts are fitted.
    """

    #: Whether cohorts are prepared apart.
    per_cohort: ClassVar[bool] = True

    cohorts: Mapping[str, MatrixTransform]
    settings: Mapping[str, Any]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are looked up."""
        return next(iter(self.cohorts.values())).columns

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that come out."""
        return next(iter(self.cohorts.values())).names

    def apply(self, values: np.ndarray, columns: tuple[str, ...], cohort: str | None = None) -> np.ndarray:
        """One patient's row, by the transform of the patient's cohort.

        Raises
        ------
        DataError
            If the cohort has none.
        """
        if cohort is None or cohort not in self.cohorts:
            raise DataError(
                f"the table is standardised per cohort, and nothing was fitted for {cohort}; fitted are "
                f"{', '.join(self.cohorts)}",
                fix=f"predict at least {MIN_PATIENTS} patients of the cohort together, or train with "
                "standardise: training",
            )
        return self.cohorts[cohort].apply(values, columns)

    def apply_rows(self, rows_NG: np.ndarray, cohorts: np.ndarray) -> np.ndarray:
        """[N, G] rows of these [N] cohorts."""
        out = np.empty((len(rows_NG), len(self.names)), np.float32)
        for name in dict.fromkeys(cohorts.tolist()):
            out[cohorts == name] = self.cohorts[name].apply_rows(rows_NG[cohorts == name])
        return out

    def with_cohort(self, name: str, rows_NG: np.ndarray) -> CohortTransforms:
        """The same with a cohort that is fitted on these rows, under the columns that come in; no label is read.

        Raises
        ------
        DataError
            If there are fewer than ten rows.
        """
        if len(rows_NG) < MIN_PATIENTS:
            raise DataError(
                f"{len(rows_NG)} patients of cohort {name} are too few to standardise it; {MIN_PATIENTS} are needed",
                fix="predict more of its patients together, or train with standardise: training",
            )
        some = next(iter(self.cohorts.values()))
        table = LocalTable(rows_NG, some.columns, (name,) * len(rows_NG))
        fitted = _of_one_cohort(_fit_all(table, self.settings), some.kept)
        return CohortTransforms({**self.cohorts, name: fitted}, self.settings)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        cohorts = {name: transform.to_json() for name, transform in self.cohorts.items()}
        return {"cohorts": cohorts, "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CohortTransforms:
        """The transforms that :meth:`to_json` wrote."""
        cohorts = {name: MatrixTransform.from_json(part) for name, part in data["cohorts"].items()}
        return cls(cohorts, data["settings"])


def fit_matrix_per_cohort(
    table: TableSums,
    *,
    scale: Scale = "none",
    clip: float | None = None,
    limit: float | None = None,
    max_columns: int | None = None,
    wanted: Collection[str] | None = None,
) -> CohortTransforms:
    """One transform per cohort, fitted on its training patients alone; all of them keep the same columns.

    Parameters are those of :func:`~equipoise.datasets.omics.transforms.fit_matrix`. A column that is constant in one
    cohort and varies in another is 0 in the first; the most variable columns are those of largest mean variance
    within cohorts.
    """
    settings: dict[str, Any] = {"scale": scale, "clip": clip, "limit": limit}
    parts = {name: _fit_all(part, settings) for name, part in sorted(table.cohorts_apart().items())}
    varies = np.any([part.varies for part in parts.values()], axis=0)
    spread = np.sqrt(np.mean([part.spread**2 for part in parts.values()], axis=0))
    kept = most_variable(varies & among(table.columns, wanted), spread, max_columns)
    return CohortTransforms({name: _of_one_cohort(part, kept) for name, part in parts.items()}, settings)


def _fit_all(table: TableSums, settings: Mapping[str, Any]) -> WholeFit:
    return fit_all_columns(table, settings["scale"], settings["clip"], True, settings["limit"])


def _of_one_cohort(whole: WholeFit, kept: np.ndarray) -> MatrixTransform:
    part = whole.transform.restricted(kept)
    # Divided by its spread of 0, a constant would not be 0 but undefined.
    return replace(part, spread=np.where(whole.varies[kept], part.spread, np.float32(1)))
