"""Logarithms of RNA: which one values need, and what of it is fitted on training patients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from equipoise.datasets.errors import DataError

Scale = Literal["log_cpm", "log1p", "log", "none"]

#: Largest value that logarithms reach: RNA values beyond it are counts or abundances (2^50 transcripts do not exist).
LARGEST_LOG = 50.0
#: Smallest unit of :attr:`Logarithm.unit` above the floor, in the units of the table.
LEAST_UNIT = 1e-3


@dataclass(frozen=True, eq=False)
class Logarithm:
    """The logarithm of one table of G columns.

    Attributes
    ----------
    scale
        ``log_cpm``: log2(1 + counts per million). ``log1p``: log2(1 + x). ``log``: ln(1 + (x - floor) / unit), for
        values that were standardised before anybody took their logarithm: it undoes the skew of a linear scale.
        ``none``: values stay as they are.
    share
        [G] mean share of a sample's counts that a column has (``log_cpm``): a library that lacks columns is scaled up
        by it.
    floor, unit
        [G] smallest training value, and the distance from it to the first training quartile + 0.001 (``log``).
        Smaller values count as the floor.
    """

    scale: Scale = "none"
    share: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    floor: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    unit: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """[n, G] on the scale that is learned on; NaN stays NaN.

        Raises
        ------
        DataError
            If values are negative where a logarithm of counts or abundances is due.
        """
        if self.scale == "none":
            return rows
        if self.scale == "log":
            return np.log1p(np.maximum(rows - self.floor, 0) / self.unit)
        if np.nanmin(rows, initial=0) < 0:
            raise DataError(
                f"the values are negative ({np.nanmin(rows):.4g}), and {self.scale} is for counts and abundances",
                fix="are they logarithms or z-scores? all cohorts must hold values of one kind",
            )
        if self.scale == "log1p":
            return np.log2(1 + rows)
        missing = np.where(np.isnan(rows), self.share, 0).sum(axis=1, keepdims=True)
        library = np.nansum(rows, axis=1, keepdims=True) / np.maximum(1 - missing, 1e-6)
        return np.log2(1 + 1e6 * rows / np.maximum(library, 1))


def common_scale(scales: dict[str, Scale], where: str) -> Scale:
    """Which logarithm RNA values need: ``log_cpm`` for counts, ``log1p`` for other abundances, else ``none``.

    Parameters
    ----------
    scales
        Name of a group (a cohort or a client) → what its values need
        (:func:`~equipoise.datasets.omics.expression.scale_of`).
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
        fix="bring the tables to one scale, or declare what they hold (omics: {rna: {path: …, kind: …}}), or name the "
        f"transform (tables: {{rna: {{transform: {max(kinds, key=kinds.count)}}}}})",
    )
