from dataclasses import replace

import numpy as np
import openslide
import pytest
from PIL import Image
from pydantic import ValidationError

from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME, SITES
from equipoise.datasets.synthetic.generate import plan, write_patient
from equipoise.datasets.synthetic.params import CohortPlan
from equipoise.datasets.synthetic.slide import TileBuffer, lay_pictures, lay_tiles


class _Order:
    def __init__(self) -> None:
        self.tiles: list[list[bytes]] = [[], [], []]

    def tile(self, level: int, jpeg: bytes) -> None:
        self.tiles[level].append(jpeg)


def test_tiles_are_laid_row_by_row():
    buffers = []
    for name in "ab":
        buffer = TileBuffer()
        buffer.tiles = [
            [f"{name}{k}".encode() for k in range(4)],
            [f"{name}x".encode()],
            [f"{name}y".encode()],
        ]
        buffers.append(buffer)
    sink = _Order()
    lay_tiles(sink, buffers, np.array([[0, 1], [1, 0]]))
    assert b" ".join(sink.tiles[0]) == b"a0 a1 b0 b1 a2 a3 b2 b3 b0 b1 a0 a1 b2 b3 a2 a3"
    assert sink.tiles[1] == [b"ax", b"bx", b"bx", b"ax"]
    squares = [np.full((2, 2), value) for value in (1, 2)]
    assert lay_pictures(squares, np.array([[0, 1], [1, 0]]))[:, ::2].tolist() == [
        [1, 2],
        [1, 2],
        [2, 1],
        [2, 1],
    ]


def test_a_mosaic_repeats_whole_slides(tmp_path):
    job = replace(plan("giga", 7)[0], mosaic=3)
    row = write_patient(job, tmp_path)
    with openslide.OpenSlide(tmp_path / row["files"][0]) as slide:
        assert slide.dimensions == (12288, 12288)
        assert slide.level_dimensions[2] == (768, 768)
        lowest = np.asarray(slide.read_region((0, 0), 2, (768, 768)).convert("RGB"), float)
        parts = lowest.reshape(3, 256, 3, 256, 3).swapaxes(1, 2).reshape(9, -1)
        distinct = {tuple(part) for part in parts}
        assert 2 <= len(distinct) <= 3
        region = np.asarray(slide.read_region((4096, 8192), 1, (1024, 1024)).convert("RGB"), float)
        shrunk = region.reshape(256, 4, 256, 4, 3).mean(axis=(1, 3))
        assert np.corrcoef(shrunk.ravel(), lowest[512:768, 256:512].ravel())[0, 1] > 0.95
    mask = np.asarray(Image.open(tmp_path / job.cohort / "truth" / "masks" / f"{job.slides[0].barcode}.png"))
    assert mask.shape == (768, 768)


def test_giga_is_over_a_gigapixel():
    (cohort,) = PRESETS_BY_NAME["giga"].cohorts
    assert (cohort.side_um / cohort.style.mpp * cohort.mosaic) ** 2 > 1e9


def test_slides_that_leave_half_tiles_are_refused():
    with pytest.raises(ValidationError, match="4096 px"):
        CohortPlan(name="syn-crc-a", patients=1, side_um=640, style=SITES["syn-crc-a"], mosaic=2)
