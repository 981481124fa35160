"""Numbers of a table → model inputs, fitted on training patients and applied to all patients by column name.

The order is: logarithm where the values are counts or abundances → gaps filled with the training centre →
outliers moved to a fence around it → standardised. Columns that are constant among training
patients carry no information and are left out; of the rest the most variable may be chosen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.statistics import Scale, TableSums, logarithm, moments
from equipoise.datasets.suggestions import nearest

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
    table: TableSums,
    *,
    scale: Scale = "none",
    clip: float | None = None,
    standardise: bool = True,
    max_columns: int | None = None,
) -> MatrixTransform:
    """Fit on training patients.

    Parameters
    ----------
    table
        Sums over training patients that have the table.
    scale
        Logarithm to take first.
    clip
        Fence in spreads around the centre, as :meth:`TableSums.centre_and_fence` estimates them; no fence if not
        given.
    standardise
        Whether columns get mean 0 and standard deviation 1; otherwise they stay as they are.
    max_columns
        Keep this many columns, those of largest variance inside the fence; all if not given.

    Raises
    ------
    DataError
        If values are negative where a logarithm is due.
    """
    share = table.shares() if scale == "log_cpm" else np.empty(0, np.float32)
    logs = table.on_scale(scale, share)
    fill, low, high = logs.centre_and_fence(clip)
    shift = moments(logs, fill, low, high, fill).mean
    spread = moments(logs, shift, low, high, fill).spread
    kept = np.flatnonzero(spread > 1e-6 * np.maximum(1.0, np.abs(shift)))
    if max_columns is not None and max_columns < len(kept):
        # The order of the table decides among equals, and stays the order of what comes out.
        kept = np.sort(kept[np.argsort(-spread[kept], kind="stable")[:max_columns]])
    if not standardise:
        shift, spread = np.zeros_like(shift), np.ones_like(spread)
    parts = (part[kept].astype(np.float32) for part in (fill, low, high, shift, spread))
    return MatrixTransform(table.columns, scale, share, kept, *parts)


def _plain(values: np.ndarray) -> list[Any]:
    """Numbers for JSON, which knows no infinity."""
    return [v if np.isfinite(v) else None for v in values.tolist()]
