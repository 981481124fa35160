"""Numbers of a table → model inputs, fitted on training patients and applied to all patients by column name.

The order is: logarithm where the values are counts or abundances → gaps filled with the training median →
outliers moved to a fence around the training centre → standardised. Columns that are constant among training
patients carry no information and are left out; of the rest the most variable may be chosen.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.suggestions import nearest

Scale = Literal["log_cpm", "log1p", "none"]

#: Largest value that logarithms reach: RNA values beyond it are counts or abundances (2^50 transcripts do not exist).
LARGEST_LOG = 50.0
#: Interquartile range of a normal distribution in standard deviations.
IQR_OF_NORMAL = 1.349
#: Share of a model's columns that a table must have to be told from another table.
MIN_SHARED_COLUMNS = 0.5


@dataclass(frozen=True, eq=False)
class MatrixTransform:
    """What is fitted on training patients for G columns of a table, K of which are model inputs.

    Attributes
    ----------
    columns
        Names of the G columns that are looked up.
    scale
        The logarithm that is taken first.
    share
        [G] mean share of a sample's counts that a column has, to estimate the library of a table that lacks
        columns; empty unless ``log_cpm``.
    kept
        [K] positions of the columns that the model reads.
    fill, low, high, shift, spread
        [K] float32 each: what fills a gap, the fence, and the standardisation ``(x - shift) / spread``.
    """

    columns: tuple[str, ...]
    scale: Scale
    share: np.ndarray
    kept: np.ndarray
    fill: np.ndarray
    low: np.ndarray
    high: np.ndarray
    shift: np.ndarray
    spread: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K columns that come out."""
        return tuple(self.columns[i] for i in self.kept)

    def apply(self, values: np.ndarray, columns: tuple[str, ...]) -> np.ndarray:
        """One patient's row, [G'] under these column names, as [K] float32 without gaps.

        Raises
        ------
        DataError
            If the table has less than half of the columns, or negative values where a logarithm is due.
        """
        row_G = self._aligned(np.asarray(values, np.float32), columns)
        x_K = logarithm(row_G[None], self.scale, self.share)[0, self.kept]
        x_K = np.where(np.isnan(x_K), self.fill, x_K)
        return ((np.clip(x_K, self.low, self.high) - self.shift) / self.spread).astype(np.float32)

    def _aligned(self, values: np.ndarray, columns: tuple[str, ...]) -> np.ndarray:
        """[G] values by name; NaN where the table lacks a column."""
        if columns is self.columns or columns == self.columns:
            return values
        position = {name: i for i, name in enumerate(columns)}
        at = np.array([position.get(name, -1) for name in self.columns])
        if (at >= 0).mean() < MIN_SHARED_COLUMNS:
            missing = [name for name, i in zip(self.columns, at, strict=True) if i < 0]
            raise DataError(
                f"the table has {(at >= 0).sum()} of the {len(at)} columns that the model was trained with; "
                f"missing are {', '.join(missing[:3])}{nearest(missing[0], columns)}",
                fix="name genes as in training (symbols or Ensembl ids)",
            )
        return np.where(at >= 0, values[at], np.nan).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain data; floats round-trip exactly."""
        arrays = ("share", "kept", "fill", "low", "high", "shift", "spread")
        return {
            "columns": list(self.columns),
            "scale": self.scale,
            **{name: _plain(getattr(self, name)) for name in arrays},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MatrixTransform:
        """The transform that :meth:`to_json` wrote."""
        floats = {
            name: np.array([np.inf if v is None else v for v in data[name]], np.float32)
            for name in ("share", "fill", "shift", "spread", "high")
        }
        low = np.array([-np.inf if v is None else v for v in data["low"]], np.float32)
        kept = np.array(data["kept"], np.intp)
        return cls(tuple(data["columns"]), data["scale"], kept=kept, low=low, **floats)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MatrixTransform) and json.dumps(self.to_json()) == json.dumps(
            other.to_json()
        )

    __hash__ = None  # type: ignore[assignment]


def fit_matrix(
    rows: np.ndarray,
    columns: tuple[str, ...],
    *,
    scale: Scale = "none",
    clip: float | None = None,
    standardise: bool = True,
    max_columns: int | None = None,
) -> MatrixTransform:
    """Fit on training patients.

    Parameters
    ----------
    rows
        [n, G] float32 of training patients that have the table, NaN = missing.
    columns
        [G] names.
    scale
        Logarithm to take first.
    clip
        Fence in spreads around the median, the spread being the interquartile range over 1.349 or, where half
        of the values are equal, the standard deviation; no fence if not given.
    standardise
        Whether columns get mean 0 and standard deviation 1; otherwise they stay as they are.
    max_columns
        Keep this many columns, those of largest variance inside the fence; all if not given.

    Raises
    ------
    DataError
        If values are negative where a logarithm is due.
    """
    share = _shares(rows) if scale == "log_cpm" else np.empty(0, np.float32)
    x_NG = logarithm(rows, scale, share).astype(float)
    known = ~np.isnan(x_NG).all(axis=0)
    fill = np.zeros(len(columns))
    fill[known] = np.nanmedian(x_NG[:, known], axis=0)
    x_NG = np.where(np.isnan(x_NG), fill, x_NG)
    low, high = _fence(x_NG, fill, clip)
    x_NG = np.clip(x_NG, low, high)
    shift, spread = x_NG.mean(axis=0), x_NG.std(axis=0)
    varying = spread > 1e-6 * np.maximum(1.0, np.abs(shift))
    kept = np.flatnonzero(varying)
    if max_columns is not None and max_columns < len(kept):
        # The order of the table decides among equals, and stays the order of what comes out.
        kept = np.sort(kept[np.argsort(-spread[kept], kind="stable")[:max_columns]])
    if not standardise:
        shift, spread = np.zeros_like(shift), np.ones_like(spread)
    parts = (part[kept].astype(np.float32) for part in (fill, low, high, shift, spread))
    return MatrixTransform(columns, scale, share, kept, *parts)


def choose_scale(rows: np.ndarray, cohorts: Sequence[str], where: str) -> Scale:
    """Which logarithm RNA values need: ``log_cpm`` for counts, ``log1p`` for other abundances, else ``none``.

    Raises
    ------
    DataError
        If cohorts differ in it, naming them: no single transform would fit.
    """
    names = np.asarray(cohorts)
    scales = {name: scale_of(rows[names == name]) for name in dict.fromkeys(cohorts)}
    if len(set(scales.values())) == 1:
        return next(iter(scales.values()))
    seen = ", ".join(f"{name} as for {scale!r}" for name, scale in scales.items())
    kinds = Counter(scales.values())
    raise DataError(
        f"the cohorts' values are on different scales: {seen}",
        where=where,
        fix="bring the tables to one scale, or name it if it is one after all "
        f"(tables: {{rna: {{transform: {kinds.most_common(1)[0][0]}}}}})",
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


def _shares(rows: np.ndarray) -> np.ndarray:
    """[G] mean share of a sample's counts."""
    total = np.maximum(np.nansum(rows, axis=1, keepdims=True), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without any value has no mean
        shares = np.nanmean(rows / total, axis=0)
    return np.nan_to_num(shares).astype(np.float32)


def _fence(x_NG: np.ndarray, centre: np.ndarray, clip: float | None) -> tuple[np.ndarray, np.ndarray]:
    """[G] lowest and highest value that stays as it is."""
    if clip is None:
        return np.full_like(centre, -np.inf), np.full_like(centre, np.inf)
    first, third = np.quantile(x_NG, (0.25, 0.75), axis=0)
    spread = (third - first) / IQR_OF_NORMAL
    spread = np.where(spread > 0, spread, x_NG.std(axis=0))
    return centre - clip * spread, centre + clip * spread


def _plain(values: np.ndarray) -> list[Any]:
    """Numbers for JSON, which knows no infinity."""
    return [v if np.isfinite(v) else None for v in values.tolist()]
