"""The pyramid in a folder: every tile that Deep Zoom asks for is there, has the right size and shows the picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equipoise.platform.explain.deep_zoom import write_deep_zoom


def smooth(width: int, height: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    return np.stack([255 * x, 255 * y, 128 + 0 * x], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("size", [(700, 300), (257, 512), (1, 5), (513, 1025)])
def test_every_tile_of_every_level(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    written = write_deep_zoom(smooth(width, height), tmp_path, 10_000_000)
    assert (written.width, written.height) == size
    top = int(np.ceil(np.log2(max(size))))
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg")}
    expected = set()
    for level in range(top + 1):  # as OpenSeadragon counts: size / 2**(top - level), rounded up
        w, h = (int(np.ceil(v / 2 ** (top - level))) for v in size)
        for column in range(-(-w // 256)):
            for row in range(-(-h // 256)):
                name = f"{level}/{column}_{row}.jpg"
                expected.add(name)
                with Image.open(tmp_path / name) as tile:
                    assert tile.size == (min(256, w - 256 * column), min(256, h - 256 * row))
    assert files == expected
    assert written.files == len(files)
    assert written.size == sum(path.stat().st_size for path in tmp_path.rglob("*.jpg"))


def test_levels_show_the_same_place(tmp_path: Path) -> None:
    write_deep_zoom(smooth(1024, 512), tmp_path, 10_000_000)
    with Image.open(tmp_path / "8" / "0_0.jpg") as tile:  # a quarter: 256 x 128
        small = np.asarray(tile).astype(float)
    assert small[64, 192, :2] == pytest.approx([255 * 0.75, 127.5], abs=4)


def test_a_picture_beyond_the_budget_is_halved(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    written = write_deep_zoom(noise, tmp_path, 300_000)
    assert written.size <= 300_000
    assert (written.width, written.height) == (600, 450)
