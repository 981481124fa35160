"""Sums over training patients, from which the transforms of tables are fitted.

Sums over groups of patients add up to the sums over all of them: a training loop has one group, whose rows are at
hand; a federation has one per client, whose rows stay there. What sums do not give is estimated by the table:
:class:`LocalTable` fills gaps with medians and clips by quartiles; means and standard deviations stand in for them
where there are only sums (:func:`centre_and_fence_from_sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from equipoise.datasets.omics.expression import scale_of
from equipoise.datasets.omics.logarithms import Scale

#: Name → array. Sums of several groups are added name by name.
Sums = dict[str, np.ndarray]
#: [n, G] rows of one group → its sums.
RowQuery = Callable[[np.ndarray], Sums]
#: [n, G] rows → [n, K] rows.
RowMap = Callable[[np.ndarray], np.ndarray]
#: [G] each: what fills a gap, and the lowest and highest value that stays as it is.
Fence = tuple[np.ndarray, np.ndarray, np.ndarray]

#: Interquartile range of a normal distribution in standard deviations.
IQR_OF_NORMAL = 1.349


@dataclass(frozen=True)
class PrincipalAxes:
    """Principal components of K columns.

    Attributes
    ----------
    centre
        [K] means.
    axes
        [K, C] orthonormal directions of largest variance; the entry of largest size is positive.
    spreads
        [C] standard deviations of the scores (of the whole, not of a sample), in descending order.
    """

    centre: np.ndarray
    axes: np.ndarray
    spreads: np.ndarray

    @classmethod
    def of(
        cls, centre: np.ndarray, axes_CK: np.ndarray, spreads: np.ndarray, count: int, n: int
    ) -> PrincipalAxes:
        """The first ``count`` directions of those given, at most n - 1 and none without variance."""
        count = min(count, max(n - 1, 0), int((spreads > 1e-6 * spreads.max(initial=0)).sum()))
        axes = axes_CK[:count]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1, keepdims=True), axis=1)
        return cls(centre, (axes * np.sign(largest)).T, spreads[:count])


class TableSums(Protocol):
    """A table of training patients that answers with sums."""

    @property
    def columns(self) -> tuple[str, ...]:
        """[G] names."""

    def total(self, query: RowQuery) -> Sums:
        """Sums over all patients that have the table; its values are NaN where missing."""

    def select(self, columns: tuple[str, ...]) -> TableSums:
        """The table with these columns only."""

    def mapped(self, function: RowMap) -> TableSums:
        """The table after a function of its rows, [n, G] → [n, K]."""

    def cohorts_apart(self) -> Mapping[str, LocalTable]:
        """Cohort → the rows of its patients, where they are at hand."""

    def scales(self) -> dict[str, Scale]:
        """Name of a group → the logarithm that its values look as if they needed (:func:`scale_of`)."""

    def shares(self) -> np.ndarray:
        """[G] float32: the mean share of a sample's counts that a column has."""

    def floor_and_quartile(self) -> tuple[np.ndarray, np.ndarray]:
        """[G] smallest value and first quartile of every column; 0 for a column without values."""

    def principal_axes(self, count: int) -> PrincipalAxes:
        """Up to ``count`` principal components; no value may be missing."""

    def centre_and_fence(self, clip: float | None) -> Fence:
        """What fills gaps, and a fence ``clip`` spreads around it; infinite without ``clip``."""


@dataclass(frozen=True)
class LocalTable:
    """A table whose rows are at hand.

    Parameters
    ----------
    rows
        [n, G], NaN = missing.
    columns
        [G] names.
    cohorts
        [n] cohorts of the patients.
    """

    rows: np.ndarray
    columns: tuple[str, ...]
    cohorts: Sequence[str] = ()

    def total(self, query: RowQuery) -> Sums:
        """See :class:`TableSums`."""
        return query(self.rows)

    def select(self, columns: tuple[str, ...]) -> LocalTable:
        """See :class:`TableSums`."""
        position = {name: i for i, name in enumerate(self.columns)}
        return LocalTable(self.rows[:, [position[name] for name in columns]], columns, self.cohorts)

    def mapped(self, function: RowMap) -> LocalTable:
        """See :class:`TableSums`."""
        return LocalTable(function(self.rows).astype(float), self.columns, self.cohorts)

    def cohorts_apart(self) -> dict[str, LocalTable]:
        """See :class:`TableSums`."""
        names = np.asarray(self.cohorts)
        return {
            name: LocalTable(self.rows[names == name], self.columns, (name,) * int((names == name).sum()))
            for name in dict.fromkeys(self.cohorts)
        }

    def scales(self) -> dict[str, Scale]:
        """Of every cohort."""
        return {f"cohort {name}": scale_of(part.rows) for name, part in self.cohorts_apart().items()}

    def shares(self) -> np.ndarray:
        """In single precision, as always: checkpoints of old trainings hold these bits."""
        total = np.maximum(np.nansum(self.rows, axis=1, keepdims=True), 1)
        parts = self.rows / total
        known = np.maximum((~np.isnan(parts)).sum(axis=0), 1)
        return (np.nansum(parts, axis=0) / known).astype(np.float32)

    def floor_and_quartile(self) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`TableSums`."""
        known = ~np.isnan(self.rows).all(axis=0)
        floor, quartile = np.zeros((2, len(self.columns)))
        floor[known] = np.nanmin(self.rows[:, known], axis=0)
        quartile[known] = np.nanquantile(self.rows[:, known].astype(float), 0.25, axis=0)
        return floor, quartile

    def principal_axes(self, count: int) -> PrincipalAxes:
        """By the singular values of the centred rows."""
        centre = self.rows.mean(axis=0)
        _, values, axes = np.linalg.svd(self.rows - centre, full_matrices=False)
        return PrincipalAxes.of(centre, axes, values / np.sqrt(len(self.rows)), count, len(self.rows))

    def centre_and_fence(self, clip: float | None) -> Fence:
        """Medians, and fences by the interquartile range over 1.349 or, where that is 0, the standard deviation."""
        known = ~np.isnan(self.rows).all(axis=0)
        centre = np.zeros(len(self.columns))
        centre[known] = np.nanmedian(self.rows[:, known], axis=0)
        if clip is None:
            return centre, *unbounded(len(centre))
        x_NG = np.where(np.isnan(self.rows), centre, self.rows)
        first, third = np.quantile(x_NG, (0.25, 0.75), axis=0)
        spread = (third - first) / IQR_OF_NORMAL
        spread = np.where(spread > 0, spread, x_NG.std(axis=0))
        return centre, centre - clip * spread, centre + clip * spread


@dataclass(frozen=True)
class Moments:
    """Of every column: [G] counts, means and standard deviations (of the whole, not of a sample)."""

    n: np.ndarray
    mean: np.ndarray
    spread: np.ndarray


def moments(
    table: TableSums, centre: np.ndarray, low: np.ndarray, high: np.ndarray, fill: np.ndarray
) -> Moments:
    """Moments inside a fence, gaps filled; the spread is taken around ``centre``.

    ``n``, Σ(x − centre) and Σ(x − centre)² are asked, so that the spread is exact only where ``centre`` is the mean.
    A column without any value has the mean ``centre``.
    """

    def query(rows: np.ndarray) -> Sums:
        x_NG = rows.astype(np.float64)
        deviation = np.clip(np.where(np.isnan(x_NG), fill, x_NG), low, high) - centre
        return {
            "n": (~np.isnan(deviation)).sum(axis=0).astype(np.float64),
            "sum": np.nansum(deviation, axis=0),
            "squares": np.nansum(deviation * deviation, axis=0),
        }

    sums = table.total(query)
    n = np.maximum(sums["n"], 1)
    return Moments(sums["n"], centre + sums["sum"] / n, np.sqrt(np.maximum(sums["squares"] / n, 0)))


def centre_and_fence_from_sums(table: TableSums, clip: float | None) -> Fence:
    """Means in place of medians, and fences by standard deviations in place of quartiles."""
    count = len(table.columns)
    low, high = unbounded(count)
    gaps = np.full(count, np.nan)
    mean = moments(table, np.zeros(count), low, high, gaps).mean
    if clip is None:
        return mean, low, high
    spread = moments(table, mean, low, high, gaps).spread
    return mean, mean - clip * spread, mean + clip * spread


def principal_axes_from_sums(table: TableSums, count: int) -> PrincipalAxes:
    """:meth:`TableSums.principal_axes` from sums of products of columns, K x K numbers."""
    first = table.total(lambda rows: {"sum": rows.sum(axis=0, dtype=float), "n": np.array([len(rows)])})
    n = int(first["n"][0])
    centre = first["sum"] / max(n, 1)

    def products(rows: np.ndarray) -> Sums:
        deviation = rows - centre
        return {"products": (deviation.T @ deviation).ravel()}

    covariance = table.total(products)["products"].reshape(len(centre), -1) / max(n, 1)
    values, axes = np.linalg.eigh(covariance)
    return PrincipalAxes.of(centre, axes.T[::-1], np.sqrt(np.maximum(values[::-1], 0)), count, n)


def unbounded(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Fences that keep every value."""
    return np.full(count, -np.inf), np.full(count, np.inf)


def shares_from_sums(table: TableSums) -> np.ndarray:
    """Mean shares (:meth:`TableSums.shares`) from their sums and counts."""
    sums = table.total(_share_sums)
    return (sums["share"] / np.maximum(sums["n"], 1)).astype(np.float32)


def _share_sums(rows: np.ndarray) -> Sums:
    total = np.maximum(np.nansum(rows, axis=1, keepdims=True), 1)
    parts = (rows / total).astype(np.float64)
    return {"share": np.nansum(parts, axis=0), "n": (~np.isnan(parts)).sum(axis=0).astype(np.float64)}
