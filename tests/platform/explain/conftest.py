"""Maps with known hottest tiles, and slides with known pixels to draw them on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.datasets.slides.conftest import write_scn, write_slide  # noqa: F401 - fixtures

from equipoise.platform.explain.tile_scores import MapCheck, TileScores

PASSED = MapCheck("deletion", 0.2, 0.1, 0.3, True, "the highest tiles matter")
FAILED = MapCheck("model_randomisation", 0.7, 0.6, 0.8, False, "a random model gives the same map")


def made_map(
    columns: int = 9, rows: int = 7, side: float = 32.0, corner: tuple[int, int] = (0, 0), **changes: Any
) -> TileScores:
    """A grid of tiles with holes, its scores in no order; the hottest tile is the same for the same shape."""
    rng = np.random.default_rng(columns * 100 + rows)
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(columns), np.arange(rows)))
    kept = rng.random(len(x)) < 0.8
    x, y = x[kept], y[kept]
    score = rng.uniform(-1, 1, len(x))
    score[rng.integers(len(x))] = 1.2
    values: dict[str, Any] = {
        "slide": "CRC/A-3", "patient": "A", "cohort": "CRC", "task": "MSI", "kind": "binary", "class_name": "MSIH",
        "method": "integrated_gradients", "x": np.floor(x * side).astype(int) + corner[0],
        "y": np.floor(y * side).astype(int) + corner[1], "side": side, "score": score, "unit": "change of the logit",
        "checks": (PASSED,), "synthetic": True,
    }  # fmt: skip
    return TileScores(**(values | changes))


@pytest.fixture
def white_slide(write_slide: Callable) -> Callable[..., Path]:  # noqa: F811 - a fixture by its name
    """``white_slide(width, height)``: a slide of white pixels at 0.5 um/px."""

    def write(width: int, height: int, name: str = "slide") -> Path:
        levels = [np.full((-(-height // d), -(-width // d), 3), 255, np.uint8) for d in (1, 2)]
        return write_slide(levels, mpp=0.5, name=name)

    return write
