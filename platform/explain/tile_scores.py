"""Tile scores: how far each tile of a slide pushed one prediction, with the checks of that map.

One Parquet file per (slide, task, class, method): columns ``x``, ``y``, ``score`` and, for the mean of several models,
``spread``; everything else stands in the schema metadata. Attribution writes it, and pictures, the viewer and the
report read it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.errors import DataError
from equipoise.datasets.names import file_stem, plain_name

VERSION = "1"

#: Longest part of a file name that a task, class or method gives, in characters.
_MAX_PART = 60
#: Fields that are columns; the others are metadata.
_COLUMNS = ("x", "y", "score")
#: A column that maps of several models have.
_SPREAD = "spread"
_TEXTS = ("slide", "patient", "cohort", "task", "kind", "class_name", "method", "unit")


@dataclass(frozen=True)
class MapCheck:
    """One check of whether a map means something.

    Attributes
    ----------
    name
        What is checked, such as ``deletion``.
    value, low, high
        The statistic and its interval; NaN where there is none.
    passed
        Whether the map passed.
    reason
        One sentence for a reader: what was found, against which rule.
    """

    name: str
    value: float
    low: float
    high: float
    passed: bool
    reason: str


@dataclass(frozen=True, eq=False)
class TileScores:
    """The scores of the tiles of one slide for one task, class and method.

    Attributes
    ----------
    slide, patient, cohort
        Whose tiles they are.
    task, kind, class_name
        Which prediction is explained; ``class_name`` is empty for a regression or survival task.
    method
        How the scores were made.
    x, y
        int32 ``[N]``, top-left corners of the tiles in level-0 pixels.
    side
        Side of a tile in level-0 pixels; may be fractional.
    score
        float32 ``[N]``, finite. Positive: the tile pushes towards the positive or named class, a higher value or a
        higher risk.
    unit
        What a score means, such as ``change of the logit``.
    checks
        Checks of this map.
    synthetic
        Whether the slide was generated.
    spread
        float32 ``[N]``, standard deviation over the models whose mean the score is; None for a single model.
    """

    slide: str
    patient: str
    cohort: str
    task: str
    kind: str
    class_name: str
    method: str
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    side: float
    score: NDArray[np.float32]
    unit: str
    checks: tuple[MapCheck, ...] = ()
    synthetic: bool = False
    spread: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("x", np.int32), ("y", np.int32), ("score", np.float32), ("spread", np.float32)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _column(getattr(self, name), dtype, name, self.slide))
        object.__setattr__(self, "checks", tuple(self.checks))
        if not len(self.x) == len(self.y) == len(self.score):
            raise DataError(
                f"{len(self.x)} x, {len(self.y)} y and {len(self.score)} scores do not belong together",
                where=self.slide,
            )
        if self.spread is not None and len(self.spread) != len(self.score):
            raise DataError(f"{len(self.spread)} spreads for {len(self.score)} scores", where=self.slide)
        if not len(self.x):
            raise DataError("a map without tiles shows nothing", where=self.slide)
        if not (math.isfinite(self.side) and self.side > 0):
            raise DataError(f"the side of a tile is {self.side:g} level-0 pixels", where=self.slide)
        if broken := int((~np.isfinite(self.score)).sum()):
            raise DataError(
                f"{broken} of {len(self)} tile scores for {self.task} are not finite; the model has diverged",
                where=self.slide,
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def failed(self) -> tuple[MapCheck, ...]:
        """Checks that this map did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def signed(self) -> bool:
        """Whether scores have both signs: zero is then the middle of the colour scale."""
        return bool(self.score.min() < 0)

    @property
    def title(self) -> str:
        """Task and class as a reader reads them."""
        return f"{self.task}: {self.class_name}" if self.class_name else self.task

    def order(self) -> NDArray[np.int64]:
        """Indices of the tiles from the highest score to the lowest; ties row by row from the top left."""
        return np.lexsort((self.x, self.y, -self.score.astype(np.float64)))


def scores_path(explain: Path, slide: str, task: str, class_name: str, method: str) -> Path:
    """``<slide stem>/<task>[.<class>].<method>.parquet`` below the folder ``explain/`` of a run."""
    return explain / file_stem(slide) / f"{scores_stem(task, class_name, method)}.parquet"


def scores_stem(task: str, class_name: str, method: str) -> str:
    """File stem of everything made for this task, class and method."""
    parts = [task, class_name, method] if class_name else [task, method]
    return ".".join(_readable(part) for part in parts)


def write_tile_scores(scores: TileScores, path: Path) -> Path:
    """Write atomically; the same scores always give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {name: getattr(scores, name) for name in _TEXTS}
    metadata |= {"side": scores.side, "synthetic": scores.synthetic}
    metadata["checks"] = [_plain(check) for check in scores.checks]
    columns = [*_COLUMNS, *([] if scores.spread is None else [_SPREAD])]
    table = pa.table({name: pa.array(getattr(scores, name)) for name in columns})
    table = table.replace_schema_metadata(
        {b"equipoise.tile_scores": VERSION.encode(), b"equipoise.map": json.dumps(metadata).encode()}
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def read_tile_scores(path: Path) -> TileScores:
    """Read a file of :func:`write_tile_scores`.

    Raises
    ------
    DataError
        If the file is missing, broken or of another layout.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = "run 'equipoise explain' again"
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as broken:
        raise DataError(f"tile scores cannot be read: {broken}", where=str(path), fix=again) from broken
    known = table.schema.metadata or {}
    version = known.get(b"equipoise.tile_scores", b"").decode()
    if version != VERSION or tuple(table.column_names) not in (_COLUMNS, (*_COLUMNS, _SPREAD)):
        raise DataError(f"not a table of tile scores of layout {VERSION}", where=str(path), fix=again)
    try:
        metadata = json.loads(known[b"equipoise.map"])
        metadata["checks"] = tuple(MapCheck(**_numbers(check)) for check in metadata["checks"])
        return TileScores(**metadata, **{name: table[name].to_numpy() for name in table.column_names})
    except (KeyError, TypeError, ValueError) as broken:
        raise DataError(
            f"metadata of the tile scores are damaged: {broken}", where=str(path), fix=again
        ) from broken


def list_tile_scores(explain: Path) -> list[Path]:
    """All files of tile scores below the folder ``explain/`` of a run, by slide and name."""
    return sorted(explain.glob("*/*.parquet"))


def merge_checks(scores: TileScores, checks: Sequence[MapCheck]) -> TileScores:
    """The same map with these checks; one of the same name replaces an earlier one."""
    names = {check.name for check in checks}
    kept = [check for check in scores.checks if check.name not in names]
    values = {item.name: getattr(scores, item.name) for item in fields(scores)}
    return TileScores(**{**values, "checks": (*kept, *checks)})


def _readable(name: str) -> str:
    """A name as part of a file name; two names that differ (``+`` and ``-``) stay different."""
    plain = plain_name(name)[:_MAX_PART]  # three of them and an ending are a file name
    if plain == name:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{plain}-{digest}" if plain else digest


def _column(values: Any, dtype: type[np.generic], name: str, slide: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise DataError(f"{name} of the tiles is not a list of numbers", where=slide)
    if np.issubdtype(dtype, np.integer) and array.dtype.kind == "f" and (array != np.floor(array)).any():
        raise DataError(f"{name} of the tiles has fractions; level-0 pixels are whole", where=slide)
    return np.ascontiguousarray(array.astype(dtype))


def _plain(check: MapCheck) -> dict[str, Any]:
    """As JSON knows it: numbers that are not finite become null."""
    record = asdict(check)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    return {k: math.nan if k in ("value", "low", "high") and v is None else v for k, v in record.items()}
