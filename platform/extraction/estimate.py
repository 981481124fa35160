"""What an extraction would take: tiles, bytes and hours, from a sample of slides; nothing is written."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.tiles import Timings
from equipoise.platform.extraction.encoders import load_encoder
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.stages import encode_tiles, plan_slide

if TYPE_CHECKING:
    import pandas as pd

#: Slides that are planned, and tiles of one of them that are encoded.
SAMPLE, TILES = 3, 64


@dataclass(frozen=True)
class ExtractionEstimate:
    """An estimate for the slides that are left.

    Attributes
    ----------
    slides
        Slides that have no features yet.
    sample
        Slides of the sample that could be planned.
    tiles
        Estimated tiles of all of them: those of the sample per byte of their files, times the bytes of all files;
        NaN if no slide of the sample could be planned.
    dim
        Width of a feature vector.
    tiles_per_s
        Tiles that one worker of this machine reads and encodes in a second; NaN where ``tiles`` is.
    problem
        Why nothing is known, or empty.
    """

    slides: int
    sample: int = 0
    tiles: float = math.nan
    dim: int = 0
    tiles_per_s: float = math.nan
    problem: str = ""

    @property
    def bytes(self) -> float:
        """Size of the features: float16 vectors and two int32 coordinates a tile."""
        return self.tiles * (2 * self.dim + 8)

    @property
    def hours(self) -> float:
        """Hours of one worker."""
        return self.tiles / self.tiles_per_s / 3600


def estimate_extraction(slides: pd.DataFrame, params: ExtractionParams) -> ExtractionEstimate:
    """Plan a few slides, from small to large, and encode some tiles of one.

    Parameters
    ----------
    slides
        Slides without features; columns as for :func:`~equipoise.platform.extraction.pipeline.extract`.
    params
        The study's features section.
    """
    sizes = [Path(path).stat().st_size if Path(path).is_file() else 0 for path in slides["path"]]
    order = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: sizes[i])
    if not order:
        return ExtractionEstimate(len(slides), problem="no slide is a file on this machine")
    count = min(SAMPLE, len(order))
    chosen = [order[(2 * k + 1) * len(order) // (2 * count)] for k in range(count)]
    encoder = load_encoder(params)
    planned = []
    for i in chosen:
        row = slides.iloc[i]
        plan_row, _ = plan_slide({"key": row.slide, **row[["slide", "path", "mpp"]]}, params)
        if plan_row.plan is not None:
            planned.append((plan_row, plan_row.plan, sizes[i]))
    if not planned:
        return ExtractionEstimate(len(slides), problem=f"none of {count} slides that were tried can be used")
    density = sum(len(plan) for _, plan, _ in planned) / sum(size for _, _, size in planned)
    row, plan, _ = planned[len(planned) // 2]
    some = slice(max(0, (len(plan) - TILES) // 2), max(0, (len(plan) - TILES) // 2) + TILES)
    part = replace(plan, x=plan.x[some], y=plan.y[some], share=None)
    started = time.perf_counter()
    try:
        encode_tiles(row, part, encoder, params, [], Timings())
    except SlideProblem as problem:
        return ExtractionEstimate(len(slides), problem=f"{row.slide}: {problem}")
    speed = len(part) / (time.perf_counter() - started)
    return ExtractionEstimate(len(slides), len(planned), density * sum(sizes), encoder.dim, speed)
