"""Small Aperio slides, and tables of them as a study would hand them over."""

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.synthetic.pyramid import encode_jpeg
from equipoise.datasets.synthetic.tiff import TiffWriter, TiledImage, picture_tags, tile_tags
from equipoise.platform.extraction.params import ExtractionParams

#: Quick and still of use: 16 tiles of 64 px would fit in the smallest slides.
PARAMS = ExtractionParams(tile_px=64, shard_slides=2)

GLASS = 244


def draw(
    seed: int,
    side: int = 512,
    colour: tuple[int, int, int] = (175, 95, 160),
    blank: bool = False,
    glass: int = GLASS,
) -> np.ndarray:
    """uint8 ``[side, side, 4]``: textured tissue in the middle of glass."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 4), glass, np.int16)
    if not blank:
        tissue = np.zeros((side, side), np.uint8)
        cv2.circle(tissue, (side // 2, side // 2), side * 2 // 5, 1, -1)
        image[tissue == 1] = (*colour, GLASS)
        for x, y in rng.integers(0, side, (side // 2, 2)):
            if tissue[y, x]:
                cv2.circle(image, (int(x), int(y)), 4, (80, 50, 130, GLASS), -1)
        image += rng.integers(-5, 6, image.shape, dtype=np.int16)
    return image.clip(0, 255).astype(np.uint8)


def write_svs(path: Path, image: np.ndarray, mpp: float = 0.5, tile: int = 128) -> Path:
    """An Aperio slide of JPEG tiles with levels 1 and 4."""
    with path.open("wb") as file:
        writer = TiffWriter(file)
        for step in (1, 4):
            size = (image.shape[1] // step, image.shape[0] // step)
            level = TiledImage(*size, tile)
            pixels = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            pixels = np.pad(pixels, ((0, -size[1] % tile), (0, -size[0] % tile), (0, 0)), mode="edge")
            for y in range(0, pixels.shape[0], tile):
                for x in range(0, pixels.shape[1], tile):
                    writer.tile(level, encode_jpeg(pixels[y : y + tile, x : x + tile], 90))
            about = f"Aperio test\n{size[0]}x{size[1]}|MPP = {mpp:g}"
            writer.directory([*picture_tags(*size, subfile=0, description=about), *tile_tags(writer, level)])
    return path


@pytest.fixture(scope="session")
def table_of() -> Callable[..., pd.DataFrame]:
    """``table_of(paths, **columns)``: a slides table as cohorts hand it over."""

    def table(paths: list[Path], **columns: list) -> pd.DataFrame:
        frame = pd.DataFrame({"slide": [path.name for path in paths], "path": [str(path) for path in paths]})
        frame["patient"] = [f"p{at}" for at in range(len(paths))]
        return frame.assign(cohort="c", mpp=math.nan).assign(**columns)

    return table


@pytest.fixture(scope="session")
def file_bytes() -> Callable[[Path], dict[str, bytes]]:
    """``file_bytes(folder)``: every file below a folder."""

    def read(root: Path) -> dict[str, bytes]:
        return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}

    return read


@pytest.fixture(scope="session")
def params() -> ExtractionParams:
    return PARAMS


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory, table_of: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """Five good slides, a blank one, one that is missing and one that is no slide."""
    folder = tmp_path_factory.mktemp("slides")
    paths = [write_svs(folder / f"good-{at}.svs", draw(at)) for at in range(5)]
    paths.insert(2, write_svs(folder / "blank.svs", draw(9, blank=True)))
    paths.insert(4, folder / "missing.svs")
    (folder / "text.svs").write_text("this is not a slide, it is a sentence")
    paths.append(folder / "text.svs")
    return table_of(paths)


@pytest.fixture(scope="session")
def make_slide(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make(name, **how)`` writes a slide; ``how`` as for drawing, and ``mpp``."""

    def make(name: str, mpp: float = 0.5, **how: object) -> Path:
        return write_svs(tmp_path_factory.mktemp("slide") / f"{name}.svs", draw(**how), mpp)

    return make
