import io

import numpy as np
import pytest
from PIL import Image

from equipoise.datasets.errors import DataError
from equipoise.datasets.synthetic import tiff
from equipoise.datasets.synthetic.pyramid import encode_jpeg
from equipoise.datasets.synthetic.tiff import (
    LONG,
    LONG8,
    TiffWriter,
    TiledImage,
    picture_tags,
    resolution_tags,
    strip_tags,
    tile_tags,
)


def _ramp(side: int, offset: int = 0) -> np.ndarray:
    rows = np.linspace(40, 200, side).astype(np.uint8) + np.uint8(offset)
    return np.repeat(np.repeat(rows[:, None, None], side, axis=1), 4, axis=2)


@pytest.mark.parametrize("big", [False, True])
def test_directories_are_read_back(big):
    file = io.BytesIO()
    writer = TiffWriter(file, big=big)
    image = TiledImage(512, 256, 256)
    for k in range(2):
        writer.tile(image, encode_jpeg(_ramp(256, 20 * k), 95))
    tags = picture_tags(512, 256, subfile=0, description="first SYNTHETIC")
    writer.directory([*tags, *tile_tags(writer, image), *resolution_tags(20000)])
    strip = strip_tags(writer, encode_jpeg(_ramp(64), 95), 64)
    writer.directory([*picture_tags(64, 64, subfile=9, description="second"), *strip])

    file.seek(0)
    with Image.open(file) as picture:
        assert picture.n_frames == 2
        assert picture.size == (512, 256)
        assert picture.tag_v2[270] == "first SYNTHETIC"
        assert picture.tag_v2[282] == picture.tag_v2[283] == 20000
        assert picture.tag_v2.tagtype[324] == (LONG8 if big else LONG)
        assert all(offset % 2 == 0 for offset in picture.tag_v2[324])
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert pixels[10, 400, 0] - pixels[10, 100, 0] == pytest.approx(
            20, abs=2
        )  # the second tile is on the right
        picture.seek(1)
        assert picture.size == (64, 64)
        assert picture.tag_v2[254] == 9


def test_a_classic_file_refuses_to_outgrow_its_offsets(monkeypatch):
    monkeypatch.setattr(tiff, "CLASSIC_LIMIT", 1000)
    classic, big = TiffWriter(io.BytesIO()), TiffWriter(io.BytesIO(), big=True)
    assert classic.data(b"x" * 900) == 8
    with pytest.raises(DataError, match="BigTIFF"):
        classic.data(b"x" * 200)
    for _ in range(3):
        big.data(b"x" * 900)
