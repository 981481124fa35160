"""One slide without a study and without a store: features, coordinates and status, in this process.

Planning and encoding are those of an extraction on Ray Data, so that the same slide gives the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.tiles import Timings
from equipoise.models.encoders.protocol import Encoder
from equipoise.platform.errors import DataError
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.stages import encode_tiles, failure, plan_slide


@dataclass(frozen=True, eq=False)
class ExtractedSlide:
    """What one slide gave.

    Attributes
    ----------
    path
        As it was asked for.
    status
        ``ok``, or why there are no features (``no_tissue``, ``unreadable``, ``no_mpp``, …: the keys of
        :data:`equipoise.datasets.slides.problems.STATUSES`).
    error
        Reason and remedy if ``status`` is not ``ok``; also how many tiles were left out as unreadable.
    coords
        int32 ``[N, 2]``, top-left corners ``x, y`` of the tiles in level-0 pixels; ``[0, 2]`` without features.
    metadata
        Columns of the feature store's index that are known: ``mpp`` of level 0 and where it comes from, ``tile_mpp``,
        ``level0_px`` (side of a tile in level-0 pixels), ``tissue`` (share of the slide), ``bad_tiles``, ``sha256``, …
    """

    path: str
    status: str
    error: str
    coords: NDArray[np.int32]
    metadata: dict[str, Any]
    _features: NDArray[np.float16] | None

    @property
    def features(self) -> NDArray[np.float16]:
        """float16 ``[N, D]``, one row per tile.

        Raises
        ------
        DataError
            If the slide has none; says why.
        """
        if self._features is None:
            raise DataError(f"no features: {self.status} ({self.error})", where=self.path)
        return self._features

    def __repr__(self) -> str:
        name = Path(self.path).name
        if self._features is None:
            return f"<ExtractedSlide {name}: {self.status}, {self.error}>"
        tiles, dim = self._features.shape
        remark = f"; {self.error}" if self.error else ""
        return (
            f"<ExtractedSlide {name}: {tiles} tiles x {dim} at {self.metadata['tile_mpp']:g} um/px{remark}>"
        )


def extract_one_slide(
    path: str | Path,
    encoder: Encoder,
    params: ExtractionParams,
    mpp: float | None = None,
    qc: str | Path | None = None,
) -> ExtractedSlide:
    """Find tissue, plan tiles and encode them.

    Parameters
    ----------
    path
        Slide file, or folder of a DICOM slide, or an address (``s3://…``).
    encoder
        Turns tiles into vectors.
    params
        The ``features`` section of a study.
    mpp
        Pixel size at level 0 in um/px; ``None`` takes what the file states.
    qc
        Folder for a picture with outlined tissue and tiles, and the same as GeoJSON, named after the file.
    """
    name = Path(path).name
    row = {"key": name, "slide": name, "path": str(path), "mpp": math.nan if mpp is None else mpp}
    folder = None if qc is None else Path(qc)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    planned, _ = plan_slide(row, params, folder)
    result, coords, features = planned.result, np.empty((0, 2), np.int32), None
    if planned.plan is not None:
        try:
            tiles = encode_tiles(planned, planned.plan, encoder, params, [], Timings())
            result, features = tiles.result, tiles.features
            coords = np.stack([tiles.x, tiles.y], axis=1)
        except SlideProblem as problem:
            result = result | {"n": 0, **failure(problem)}
    status, error = result["status"], result.get("error", "")
    return ExtractedSlide(str(path), status, error, coords, result, features)
