"""Principal components of a transformed table, not whitened."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.datasets.omics.per_cohort import CohortTransforms
from equipoise.datasets.omics.statistics import LocalTable, TableSums
from equipoise.datasets.omics.transforms import MatrixTransform


@dataclass(frozen=True, eq=False)
class ComponentTransform:
    """A transform, and then scores on principal components of what comes out of it.

    All scores are divided by one number, the standard deviation of the first component's: unlike whitening, that
    keeps small components small, and weight decay acts on them as it would on the columns.

    Attributes
    ----------
    before
        From rows to [K] columns.
    centre
        [K] float32 training means of the columns.
    axes
        [K, C] float32 directions.
    unit
        Standard deviation of the first score.
    """

    before: MatrixTransform | CohortTransforms
    centre: np.ndarray
    axes: np.ndarray
    unit: float

    @property
    def per_cohort(self) -> bool:
        """Whether cohorts are prepared apart."""
        return self.before.per_cohort

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are looked up."""
        return self.before.columns

    @property
    def names(self) -> tuple[str, ...]:
        """``component 1``, ``component 2``, …"""
        return tuple(f"component {i + 1}" for i in range(self.axes.shape[1]))

    def apply(self, values: np.ndarray, columns: tuple[str, ...], cohort: str | None = None) -> np.ndarray:
        """One patient's row as [C] float32 scores."""
        x_K = self.before.apply(values, columns, cohort)
        return ((x_K - self.centre) @ self.axes / np.float32(self.unit)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain data; axes are little-endian float32 in Base64, because as digits they would be five times as long."""
        return {
            "before": self.before.to_json(),
            "centre": _encoded(self.centre),
            "axes": _encoded(self.axes),
            "count": self.axes.shape[1],
            "unit": self.unit,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ComponentTransform:
        """The transform that :meth:`to_json` wrote."""
        axes = _decoded(data["axes"]).reshape(-1, data["count"])
        kind = CohortTransforms if "cohorts" in data["before"] else MatrixTransform
        return cls(kind.from_json(data["before"]), _decoded(data["centre"]), axes, data["unit"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComponentTransform) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]


def fit_components(
    table: TableSums, before: MatrixTransform | CohortTransforms, count: int
) -> ComponentTransform:
    """Fit on training patients.

    Parameters
    ----------
    table
        Sums over training patients, before any transform.
    before
        Transform that was fitted on them.
    count
        Components at most; also at most one less than patients.
    """
    if isinstance(before, CohortTransforms):
        parts = table.cohorts_apart()
        rows = [before.cohorts[name].apply_rows(part.rows) for name, part in parts.items()]
        mapped: TableSums = LocalTable(np.concatenate(rows).astype(float), before.names)
    else:
        mapped = table.mapped(before.apply_rows)
    axes = mapped.principal_axes(count)
    unit = float(axes.spreads[0]) if len(axes.spreads) else 1.0
    return ComponentTransform(before, axes.centre.astype(np.float32), axes.axes.astype(np.float32), unit)


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii")


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
