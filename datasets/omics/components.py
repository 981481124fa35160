"""Linear maps of a transformed table: principal components, not whitened, and mean scores of gene sets."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.datasets.omics.per_cohort import CohortTransforms
from equipoise.datasets.omics.statistics import LocalTable, TableSums, moments, unbounded
from equipoise.datasets.omics.transforms import MatrixTransform


@dataclass(frozen=True, eq=False)
class ComponentTransform:
    """A transform, and then scores on directions of what comes out of it.

    Scores of principal components are divided by one number, the standard deviation of the first component's: unlike
    whitening, that keeps small components small, and weight decay acts on them as it would on the columns. Scores of
    gene sets are means over genes, divided by their own standard deviations.

    Attributes
    ----------
    before
        From rows to [K] columns.
    centre
        [K] float32 training means of the columns.
    axes
        [K, C] float32 directions.
    unit
        What all scores are divided by: the standard deviation of the first component's, 1 for gene sets.
    labels
        [C] names of the directions, if they have any.
    """

    before: MatrixTransform | CohortTransforms
    centre: np.ndarray
    axes: np.ndarray
    unit: float
    labels: tuple[str, ...] = ()

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
        """Names of gene sets, or ``component 1``, ``component 2``, …"""
        return self.labels or tuple(f"component {i + 1}" for i in range(self.axes.shape[1]))

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
        } | ({"labels": list(self.labels)} if self.labels else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ComponentTransform:
        """The transform that :meth:`to_json` wrote."""
        axes = _decoded(data["axes"]).reshape(-1, data["count"])
        kind = CohortTransforms if "cohorts" in data["before"] else MatrixTransform
        labels = tuple(data.get("labels", ()))
        return cls(kind.from_json(data["before"]), _decoded(data["centre"]), axes, data["unit"], labels)

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
    mapped = _after(table, before)
    axes = mapped.principal_axes(count)
    unit = float(axes.spreads[0]) if len(axes.spreads) else 1.0
    return ComponentTransform(before, axes.centre.astype(np.float32), axes.axes.astype(np.float32), unit)


def fit_set_scores(
    table: TableSums, before: MatrixTransform | CohortTransforms, sets: Mapping[str, Sequence[str]]
) -> ComponentTransform:
    """Mean of the transformed genes of every set, with mean 0 and standard deviation 1 among training patients.

    Parameters
    ----------
    table
        Sums over training patients, before any transform.
    before
        Transform that was fitted on them.
    sets
        Name → genes. A set none of whose genes the transform has, or whose score is constant, is left out.
    """
    position = {name: i for i, name in enumerate(before.names)}
    members = {
        name: [position[gene] for gene in dict.fromkeys(genes) if gene in position]
        for name, genes in sets.items()
    }
    members = {name: at for name, at in members.items() if at}
    axes = np.zeros((len(position), len(members)))
    for column, at in enumerate(members.values()):
        axes[at, column] = 1 / len(at)
    low, high = unbounded(len(position))
    mapped, zero = _after(table, before), np.zeros(len(position))
    centre = moments(mapped, zero, low, high, zero).mean
    scores = mapped.mapped(lambda rows: (rows - centre) @ axes)
    low, high = unbounded(len(members))
    spread = moments(scores, np.zeros(len(members)), low, high, np.zeros(len(members))).spread
    varies = spread > 1e-6
    scaled = axes[:, varies] / spread[varies]
    labels = tuple(name for name, vary in zip(members, varies, strict=True) if vary)
    return ComponentTransform(before, centre.astype(np.float32), scaled.astype(np.float32), 1.0, labels)


def _after(table: TableSums, before: MatrixTransform | CohortTransforms) -> TableSums:
    """Sums over what comes out of a transform."""
    if isinstance(before, CohortTransforms):
        parts = table.cohorts_apart()
        rows = [before.cohorts[name].apply_rows(part.rows) for name, part in parts.items()]
        return LocalTable(np.concatenate(rows).astype(float), before.names)
    return table.mapped(before.apply_rows)


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii")


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
