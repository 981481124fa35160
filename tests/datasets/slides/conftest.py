"""Small slides with known pixels: tiled TIFFs without compression, to compare what is read exactly."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from equipoise.datasets.synthetic.tiff import (
    ASCII,
    LONG,
    SHORT,
    Tag,
    TiffWriter,
    TiledImage,
    resolution_tags,
    tile_tags,
)

WriteSlide = Callable[..., Path]


@pytest.fixture(scope="session")
def write_slide(tmp_path_factory: pytest.TempPathFactory) -> WriteSlide:
    """``write(levels, mpp=..., vendor=...)``: a slide of uint8 ``[h, w, 3]`` levels, finest first."""

    def write(
        levels: Sequence[np.ndarray],
        mpp: float | None = 0.5,
        vendor: str = "aperio",
        name: str = "slide",
        tile: int = 64,
    ) -> Path:
        path = tmp_path_factory.mktemp("slides") / f"{name}.{'svs' if vendor == 'aperio' else 'tiff'}"
        with path.open("wb") as file:
            writer = TiffWriter(file)
            for at, pixels in enumerate(levels):
                height, width = pixels.shape[:2]
                image = TiledImage(width, height, tile)
                whole = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)))
                for y in range(0, height, tile):
                    for x in range(0, width, tile):
                        writer.tile(image, whole[y : y + tile, x : x + tile].tobytes())
                tags = [
                    Tag(254, LONG, [0 if vendor == "aperio" else min(at, 1)]),
                    Tag(256, LONG, [width]),
                    Tag(257, LONG, [height]),
                    Tag(258, SHORT, [8, 8, 8]),
                    Tag(259, SHORT, [1]),
                    Tag(262, SHORT, [2]),
                    Tag(277, SHORT, [3]),
                    Tag(284, SHORT, [1]),
                    *tile_tags(writer, image),
                ]
                if vendor == "aperio":
                    about = f"Aperio test\n{width}x{height} ({tile}x{tile})" + (
                        f"|MPP = {mpp}" if mpp else ""
                    )
                    tags.append(Tag(270, ASCII, about))
                elif mpp:
                    tags += resolution_tags(10_000 / mpp)
                writer.directory(tags)
        return path

    return write


@pytest.fixture(scope="session")
def noise() -> np.ndarray:
    """uint8 ``[500, 620, 3]`` without any structure: every shift of a pixel shows."""
    return np.random.default_rng(3).integers(0, 256, (500, 620, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def tissue_image() -> np.ndarray:
    """uint8 ``[1024, 1280, 3]``: glass with a purple, textured disk of radius 400 px at (600, 500)."""
    rng = np.random.default_rng(4)
    image = np.full((1024, 1280, 3), 243, np.int16)
    y, x = np.mgrid[:1024, :1280]
    disk = (x - 600) ** 2 + (y - 500) ** 2 < 400**2
    image[disk] = (170, 90, 160)
    image += rng.integers(-6, 7, image.shape, dtype=np.int16)
    return image.clip(0, 255).astype(np.uint8)
