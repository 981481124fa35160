"""Sums over training patients, from which the transforms of tables are fitted.

Sums over groups of patients add up to the sums over all of them: a training loop has one group, whose rows are at
hand; a federation has one per client, whose rows stay there. What sums do not give is estimated by the table:
:class:`LocalTable` fills gaps with medians and clips by quartiles; means and standard deviations stand in for them
where there are only sums (:func:`centre_and_fence_from_sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from equipoise.datasets.errors import DataError

Scale = Literal["log_cpm", "log1p", "none"]
#: Name → array. Sums of several groups are added name by name.
Sums = dict[str, np.ndarray]
#: [n, G] rows of one group → its sums.
RowQuery = Callable[[np.ndarray], Sums]
#: [G] each: what fills a gap, and the lowest and highest value that stays as it is.
Fence = tuple[np.ndarray, np.ndarray, np.ndarray]

#: Largest value that logarithms reach: RNA values beyond it are counts or abundances (2^50 transcripts do not exist).
LARGEST_LOG = 50.0
#: Interquartile range of a normal distribution in standard deviations.
IQR_OF_NORMAL = 1.349


class TableSums(Protocol):
    """A table of training patients that answers with sums."""

    @property
    def columns(self) -> tuple[str, ...]:
        """[G] names."""

    def total(self, query: RowQuery) -> Sums:
        """Sums over all patients that have the table; its values are NaN where missing."""

    def select(self, columns: tuple[str, ...]) -> TableSums:
        """The table with these columns only."""

    def on_scale(self, scale: Scale, share: np.ndarray) -> TableSums:
        """The table after :func:`logarithm`."""

    def scales(self) -> dict[str, Scale]:
        """Name of a group → the logarithm that its values look as if they needed (:func:`scale_of`)."""

    def shares(self) -> np.ndarray:
        """[G] float32: the mean share of a sample's counts that a column has."""

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

    def on_scale(self, scale: Scale, share: np.ndarray) -> LocalTable:
        """See :class:`TableSums`."""
        return LocalTable(logarithm(self.rows, scale, share).astype(float), self.columns, self.cohorts)

    def scales(self) -> dict[str, Scale]:
        """Of every cohort."""
        names = np.asarray(self.cohorts)
        return {f"cohort {name}": scale_of(self.rows[names == name]) for name in dict.fromkeys(self.cohorts)}

    def shares(self) -> np.ndarray:
        """In single precision, as always: checkpoints of old trainings hold these bits."""
        total = np.maximum(np.nansum(self.rows, axis=1, keepdims=True), 1)
        parts = self.rows / total
        known = np.maximum((~np.isnan(parts)).sum(axis=0), 1)
        return (np.nansum(parts, axis=0) / known).astype(np.float32)

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


def common_scale(scales: dict[str, Scale], where: str) -> Scale:
    """Which logarithm RNA values need: ``log_cpm`` for counts, ``log1p`` for other abundances, else ``none``.

    Parameters
    ----------
    scales
        Name of a group (a cohort or a client) → what its values need (:func:`scale_of`).
    where
        For the message.

    Raises
    ------
    DataError
        If groups differ in it, naming them: no single transform would fit.
    """
    kinds = list(scales.values())
    if len(set(kinds)) == 1:
        return kinds[0]
    seen = ", ".join(f"{name} as for {scale!r}" for name, scale in scales.items())
    raise DataError(
        f"the values are on different scales: {seen}",
        where=where,
        fix="bring the tables to one scale, or name it if it is one after all "
        f"(tables: {{rna: {{transform: {max(kinds, key=kinds.count)}}}}})",
    )


def scale_of(rows: np.ndarray) -> Scale:
    """The logarithm that these values look as if they needed."""
    values = rows[~np.isnan(rows)]
    if not len(values) or values.min() < 0 or values.max() <= LARGEST_LOG:
        return "none"
    return "log_cpm" if np.array_equal(values, np.floor(values)) else "log1p"


def logarithm(rows: np.ndarray, scale: Scale, share: np.ndarray) -> np.ndarray:
    """[n, G] on the scale that is learned on; a library that lacks columns is scaled up by their usual share."""
    if scale == "none":
        return rows
    if np.nanmin(rows, initial=0) < 0:
        raise DataError(
            f"the values are negative ({np.nanmin(rows):.4g}), and {scale} is for counts and abundances",
            fix="are they logarithms or z-scores? all cohorts must hold values of one kind",
        )
    if scale == "log1p":
        return np.log2(1 + rows)
    missing = np.where(np.isnan(rows), share, 0).sum(axis=1, keepdims=True)
    library = np.nansum(rows, axis=1, keepdims=True) / np.maximum(1 - missing, 1e-6)
    return np.log2(1 + 1e6 * rows / np.maximum(library, 1))
