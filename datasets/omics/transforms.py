"""Numbers of a table → model inputs, fitted on training patients and applied to all patients by column name.

The order is: logarithm where one is due (:mod:`equipoise.datasets.omics.logarithms`) → gaps filled with the training
centre → outliers moved to a fence around it → standardised → moved to a second fence where one is asked for. Columns
that are constant among training patients carry no information and are left out; of the rest the most variable may be
chosen.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.logarithms import LEAST_UNIT, Logarithm, Scale
from equipoise.datasets.omics.statistics import TableSums, moments
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
    logarithm
        What is taken first.
    kept
        [K] positions of the columns that the model reads.
    fill, low, high, shift, spread
        [K] float32 each: what fills a gap, the fence, and the standardisation ``(x - shift) / spread``.
    limit
        Largest size of a standardised value: those beyond it are moved there.
    """

    columns: tuple[str, ...]
    logarithm: Logarithm
    kept: np.ndarray
    fill: np.ndarray
    low: np.ndarray
    high: np.ndarray
    shift: np.ndarray
    spread: np.ndarray
    limit: float = np.inf

    #: Whether cohorts are prepared apart.
    per_cohort: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the K columns that come out."""
        return tuple(self.columns[i] for i in self.kept)

    @property
    def scale(self) -> Scale:
        """The logarithm that is taken first."""
        return self.logarithm.scale

    def apply(self, values: np.ndarray, columns: tuple[str, ...], cohort: str | None = None) -> np.ndarray:
        """One patient's row, [G'] under these column names, as [K] float32 without gaps.

        The cohort of the patient changes nothing.

        Raises
        ------
        DataError
            If the table has less than half of the columns, or negative values where a logarithm is due.
        """
        return self.apply_rows(aligned(np.asarray(values, np.float32), columns, self.columns)[None])[0]

    def apply_rows(self, rows_NG: np.ndarray) -> np.ndarray:
        """[N, G] under the columns of the transform as [N, K] float32 without gaps."""
        x_NK = self.logarithm(rows_NG)[:, self.kept]
        x_NK = np.where(np.isnan(x_NK), self.fill, x_NK)
        z_NK = (np.clip(x_NK, self.low, self.high) - self.shift) / self.spread
        return np.clip(z_NK, -self.limit, self.limit).astype(np.float32)

    def restricted(self, kept: np.ndarray) -> MatrixTransform:
        """The transform of the columns at these positions of ``kept``."""
        names = ("kept", "fill", "low", "high", "shift", "spread")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def to_json(self) -> dict[str, Any]:
        """Plain data; floats round-trip exactly. What a transform does not have is left out."""
        log = self.logarithm
        arrays = {
            name: _plain(getattr(self, name)) for name in ("kept", "fill", "low", "high", "shift", "spread")
        }
        floors = {"floor": _plain(log.floor), "unit": _plain(log.unit)} if log.scale == "log" else {}
        limit = {"limit": self.limit} if np.isfinite(self.limit) else {}
        head = {"columns": list(self.columns), "scale": log.scale, "share": _plain(log.share)}
        return {**head, **arrays, **floors, **limit}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MatrixTransform:
        """The transform that :meth:`to_json` wrote, this version's or an earlier one's."""
        log = Logarithm(data["scale"], *(_floats(data.get(name, ())) for name in ("share", "floor", "unit")))
        return cls(
            tuple(data["columns"]),
            log,
            kept=np.array(data["kept"], np.intp),
            low=_floats(data["low"], -np.inf),
            limit=data.get("limit", np.inf),
            **{name: _floats(data[name]) for name in ("fill", "high", "shift", "spread")},
        )

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
    limit: float | None = None,
    max_columns: int | None = None,
    wanted: Collection[str] | None = None,
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
    limit
        Largest size of a standardised value; no limit if not given.
    max_columns
        Keep this many columns, those of largest variance inside the fence; all if not given.
    wanted
        Names of the columns that may be kept; all if not given. The others still count for library sizes.

    Raises
    ------
    DataError
        If values are negative where a logarithm of counts or abundances is due.
    """
    whole = fit_all_columns(table, scale, clip, standardise, limit)
    varies = whole.varies & among(table.columns, wanted)
    return whole.transform.restricted(most_variable(varies, whole.spread, max_columns))


@dataclass(frozen=True)
class WholeFit:
    """A transform that keeps all columns; their [G] spreads in full precision, and whether they vary."""

    transform: MatrixTransform
    spread: np.ndarray
    varies: np.ndarray


def fit_all_columns(
    table: TableSums, scale: Scale, clip: float | None, standardise: bool, limit: float | None
) -> WholeFit:
    """Fit without leaving out any column; parameters as in :func:`fit_matrix`."""
    log = fit_logarithm(table, scale)
    logs = table if scale == "none" else table.mapped(log)
    fill, low, high = logs.centre_and_fence(clip)
    shift = moments(logs, fill, low, high, fill).mean
    spread = moments(logs, shift, low, high, fill).spread
    varies = spread > 1e-6 * np.maximum(1.0, np.abs(shift))
    centre, unit = (shift, spread) if standardise else (np.zeros_like(shift), np.ones_like(spread))
    parts = [part.astype(np.float32) for part in (fill, low, high, centre, unit)]
    transform = MatrixTransform(
        table.columns,
        log,
        np.arange(len(table.columns)),
        fill=parts[0],
        low=parts[1],
        high=parts[2],
        shift=parts[3],
        spread=parts[4],
        limit=np.inf if limit is None else limit,
    )
    return WholeFit(transform, spread, varies)


def fit_logarithm(table: TableSums, scale: Scale) -> Logarithm:
    """What a logarithm needs of training patients."""
    if scale == "log_cpm":
        return Logarithm(scale, share=table.shares())
    if scale == "log":
        floor, quartile = table.floor_and_quartile()
        return Logarithm(
            scale, floor=floor.astype(np.float32), unit=(quartile - floor + LEAST_UNIT).astype(np.float32)
        )
    return Logarithm(scale)


def among(columns: Sequence[str], wanted: Collection[str] | None) -> np.ndarray:
    """Whether each of the columns is among those that may be kept."""
    return np.array([wanted is None or name in wanted for name in columns], bool)


def most_variable(varies: np.ndarray, spread: np.ndarray, count: int | None) -> np.ndarray:
    """Positions of the columns that vary, the ``count`` most variable ones if there are more."""
    kept = np.flatnonzero(varies)
    if count is not None and count < len(kept):
        # The order of the table decides among equals, and stays the order of what comes out.
        kept = np.sort(kept[np.argsort(-spread[kept], kind="stable")[:count]])
    return kept


def aligned(values: np.ndarray, columns: tuple[str, ...], wanted: tuple[str, ...]) -> np.ndarray:
    """[G] values of a row by the names of its columns; NaN where the row lacks one.

    Raises
    ------
    DataError
        If it lacks more than half of them.
    """
    if columns is wanted or columns == wanted:
        return values
    position = {name: i for i, name in enumerate(columns)}
    at = np.array([position.get(name, -1) for name in wanted])
    if (at >= 0).mean() < MIN_SHARED_COLUMNS:
        missing = [name for name, i in zip(wanted, at, strict=True) if i < 0]
        raise DataError(
            f"the table has {(at >= 0).sum()} of the {len(at)} columns that the model was trained with; "
            f"missing are {', '.join(missing[:3])}{nearest(missing[0], columns)}",
            fix="name genes as in training (symbols or Ensembl ids)",
        )
    return np.where(at >= 0, values[at], np.nan).astype(np.float32)


def _plain(values: np.ndarray) -> list[Any]:
    """Numbers for JSON, which knows no infinity."""
    return [v if np.isfinite(v) else None for v in values.tolist()]


def _floats(values: Sequence[float | None], infinite: float = np.inf) -> np.ndarray:
    """The inverse of :func:`_plain`, float32."""
    return np.array([infinite if v is None else v for v in values], np.float32)
