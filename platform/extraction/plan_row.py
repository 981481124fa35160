"""The row that travels from the planner to an encoder: one slide, or one region of a giant one."""

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
    """What planning a slide gave, or what one worker is to do of it.

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
    region, regions
        Which region of how many; a slide that is not split is the one region of itself.
    tiles
        Tiles of the whole slide.
    """

    key: str
    slide: str
    path: str
    table_mpp: float
    result: Row
    plan: TilePlan | None = None
    region: int = 0
    regions: int = 1
    tiles: int = 0

    @property
    def step(self) -> str:
        """Under which name attempts are marked: every region counts its own."""
        return "encode" if self.regions == 1 else f"encode-{self.region}"

    @property
    def staged_as(self) -> str:
        """Name of the staged file. A region's tells its tiles, so that it is good for no other cut of the slide."""
        if self.regions == 1 or self.plan is None:
            return self.key
        return f"{self.key}.{hashlib.sha256(_corners(self.plan)).hexdigest()[:16]}"

    def as_row(self) -> Row:
        """As a small row for Ray: a few bytes per tile."""
        plan = self.plan
        about = {
            "result": self.result,
            "plan": {"side": plan.side, "px": plan.px, "mpp": plan.mpp} if plan else None,
            "table_mpp": self.table_mpp,
            "cut": {"region": self.region, "regions": self.regions, "tiles": self.tiles},
        }
        return {
            "key": self.key,
            "slide": self.slide,
            "path": self.path,
            "about": json.dumps(about),
            "tiles": _corners(plan) if plan else b"",
        }

    @classmethod
    def from_row(cls, row: Row) -> PlanRow:
        """The other way round."""
        about = json.loads(row["about"])
        plan = None
        if about["plan"]:
            x, y = np.frombuffer(row["tiles"], np.int32).reshape(2, -1)
            plan = TilePlan(x, y, **about["plan"])
        table_mpp, result = about["table_mpp"], about["result"]
        return cls(row["key"], row["slide"], row["path"], table_mpp, result, plan, **about["cut"])


def part_of(plan: TilePlan, places: NDArray[np.int64]) -> TilePlan:
    """Some tiles of a plan, in its order."""
    kept = np.sort(places)
    return TilePlan(plan.x[kept], plan.y[kept], plan.side, plan.px, plan.mpp)


def _corners(plan: TilePlan) -> bytes:
    return np.stack([plan.x, plan.y]).tobytes()
