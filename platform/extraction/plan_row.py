"""The row that a planner sends to an encoder: one slide, or one chunk of a large slide."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.grid import TilePlan

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class PlanRow:
    """The plan of a slide, or of the chunk of it that one worker encodes.

    Attributes
    ----------
    key, slide, path
        Which slide.
    table_mpp
        Pixel size of the slides table, NaN if it states none.
    result
        Columns of the store's index known so far; ``status`` is ``ok`` if the slide can be encoded.
    plan
        The tiles, if so.
    chunk, chunks
        Index of the chunk and number of chunks; a slide that is not split is a single chunk.
    tiles
        Tiles of the whole slide.
    """

    key: str
    slide: str
    path: str
    table_mpp: float
    result: Row
    plan: TilePlan | None = None
    chunk: int = 0
    chunks: int = 1
    tiles: int = 0

    @property
    def step(self) -> str:
        """Name under which attempts are marked; every chunk has its own count."""
        return "encode" if self.chunks == 1 else f"encode-{self.chunk}"

    @property
    def staged_as(self) -> str:
        """Name of the staged file. That of a chunk depends on its tiles, so that another split ignores it."""
        if self.chunks == 1 or self.plan is None:
            return self.key
        return f"{self.key}.{hashlib.sha256(_corners(self.plan)).hexdigest()[:16]}"

    def as_row(self) -> Row:
        """As a small row for Ray: a few bytes per tile."""
        plan = self.plan
        metadata = {
            "result": self.result,
            "plan": {"side": plan.side, "px": plan.px, "mpp": plan.mpp} if plan else None,
            "table_mpp": self.table_mpp,
            "split": {"chunk": self.chunk, "chunks": self.chunks, "tiles": self.tiles},
        }
        return {
            "key": self.key,
            "slide": self.slide,
            "path": self.path,
            "metadata": json.dumps(metadata),
            "tiles": _corners(plan) if plan else b"",
        }

    @classmethod
    def from_row(cls, row: Row) -> PlanRow:
        """The inverse of :meth:`as_row`."""
        metadata = json.loads(row["metadata"])
        plan = None
        if metadata["plan"]:
            x, y = np.frombuffer(row["tiles"], np.int32).reshape(2, -1)
            plan = TilePlan(x, y, **metadata["plan"])
        table_mpp, result = metadata["table_mpp"], metadata["result"]
        return cls(row["key"], row["slide"], row["path"], table_mpp, result, plan, **metadata["split"])


def subset_plan(plan: TilePlan, indices: NDArray[np.int64]) -> TilePlan:
    """Some tiles of a plan, in the plan's order."""
    kept = np.sort(indices)
    return TilePlan(plan.x[kept], plan.y[kept], plan.side, plan.px, plan.mpp)


def _corners(plan: TilePlan) -> bytes:
    return np.stack([plan.x, plan.y]).tobytes()
