"""The hottest tile lies at the same level-0 pixel in the table, the PNG, the GeoJSON and the overlay of the viewer.

What the pictures show is decoded here by arithmetic of its own: the only thing taken from the product is where in the
PNG the picture of the slide is.
"""

import base64
import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.platform.explain.conftest import made_map

from equipoise.platform.explain.heatmap import write_heatmap
from equipoise.platform.explain.render import render
from equipoise.platform.explain.slide_picture import slide_picture
from equipoise.platform.explain.tile_scores import TileScores


def reddest(pixels: np.ndarray) -> tuple[float, float]:
    """Centre (x, y) of the pixels that are more red than blue by most: the upper end of the scale."""
    excess = pixels[..., 0].astype(int) - pixels[..., 2].astype(int)
    rows, columns = np.nonzero(excess >= excess.max() - 1)
    return (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2


def hottest(scores: TileScores) -> tuple[float, float]:
    """Centre of the hottest tile in level-0 pixels."""
    at = int(np.argmax(scores.score))
    return float(scores.x[at]) + scores.side / 2, float(scores.y[at]) + scores.side / 2


def of_geojson(path: Path) -> tuple[float, float]:
    collection = json.loads(path.read_text())
    (name,) = {key for f in collection["features"] for key in f["properties"]["measurements"]} - {"rank"}
    feature = max(collection["features"], key=lambda f: f["properties"]["measurements"][name])
    ring = np.array(feature["geometry"]["coordinates"][0])
    origin = collection["about"]["origin"]
    middle = (ring.min(axis=0) + ring.max(axis=0)) / 2
    return middle[0] + origin[0], middle[1] + origin[1]


def of_viewer(page: Path) -> tuple[float, float]:
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])  # type: ignore[index]
    (shown,) = data["maps"]
    png = base64.b64decode(shown["overlay"].partition(",")[2])
    rgba = np.asarray(Image.open(io.BytesIO(png)))
    opaque = np.where(rgba[..., 3:] > 0, rgba[..., :3], 255)
    column, row = reddest(opaque)
    left, top, width, height = shown["rect"]
    return left + column * width / rgba.shape[1], top + row * height / rgba.shape[0]


CASES = {
    "regular": ((700, 500), made_map(9, 7, 32.0)),
    "edges that end within a tile": ((301, 233), made_map(9, 7, 32.0)),
    "tall": ((199, 811), made_map(6, 25, 32.0)),
    "sides with fractions": ((800, 611), made_map(23, 17, 33.36)),
    "a grid that begins elsewhere": ((900, 700), made_map(9, 7, 41.0, corner=(213, 117))),
    "far larger than the picture": ((1801, 1203), made_map(45, 30, 40.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_with_a_slide(white_slide: Callable[..., Path], tmp_path: Path, case: str) -> None:
    (width, height), scores = CASES[case]
    path = white_slide(width, height)
    drawn = render(scores, path, tmp_path)
    assert drawn.viewer is not None
    expected = hottest(scores)
    assert of_geojson(drawn.geojson[0]) == pytest.approx(
        expected, abs=0.51
    )  # corners are rounded to whole pixels
    assert of_viewer(drawn.viewer) == pytest.approx(expected, abs=1.0)
    assert of_png(scores, path, tmp_path) == pytest.approx(
        expected, abs=1.01 * max(1, width / 1100, height / 1100)
    )


def of_png(scores: TileScores, slide: Path | None, folder: Path) -> tuple[float, float]:
    plain = dataclasses.replace(scores, synthetic=False)  # the watermark lies over the colours
    drawn = write_heatmap(plain, slide_picture(slide, [scores], 36_000_000).scanned(), folder / "again.png")
    pixels = np.asarray(Image.open(drawn.path))
    column, row = reddest(pixels[drawn.top :, drawn.left :][: drawn.height, : drawn.width])
    return drawn.x + column / drawn.scale[0], drawn.y + row / drawn.scale[1]


def test_on_blank_paper(tmp_path: Path) -> None:
    scores = made_map(9, 7, 33.36, corner=(5000, 70_000))
    drawn = render(scores, None, tmp_path)
    assert drawn.viewer is None
    assert of_geojson(drawn.geojson[0]) == pytest.approx(hottest(scores), abs=0.51)
    assert of_png(scores, None, tmp_path) == pytest.approx(hottest(scores), abs=1.0)


def test_a_slide_that_states_its_scanned_area(write_scn: Callable[..., Path], tmp_path: Path) -> None:
    """Leica SCN, MIRAX: level 0 is larger than what was scanned, and QuPath counts from the corner of that area."""
    scores = made_map(9, 7, 32.0, corner=(384, 224))
    path = write_scn(np.full((400, 500, 3), 255, np.uint8), 320, 160, (1200, 900))
    drawn = render(scores, path, tmp_path)
    assert drawn.viewer is not None
    at = int(np.argmax(scores.score))
    collection = json.loads(drawn.geojson[0].read_text())
    first = collection["features"][0]["geometry"]["coordinates"][0][0]
    assert first == [scores.x[at] - 320, scores.y[at] - 160]  # what QuPath reads
    assert of_geojson(drawn.geojson[0]) == hottest(scores)
    assert of_viewer(drawn.viewer) == pytest.approx(hottest(scores), abs=0.01)
    assert of_png(scores, path, tmp_path) == pytest.approx(hottest(scores), abs=1.01)
    shown = json.loads(re.search(r'id="data">(.*?)</script>', drawn.viewer.read_text(), re.S)[1])  # type: ignore[index]
    assert shown["picture"] == [320, 160, 500, 400]


@pytest.mark.real
def test_on_a_slide_of_tcga(shared_data: Path, tmp_path: Path) -> None:
    scores = made_map(19, 15, 224.0)
    slide = shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    drawn = render(scores, slide, tmp_path, study_mpp=0.5)  # the file does not state it
    assert drawn.viewer is not None, drawn.missing
    assert of_geojson(drawn.geojson[0]) == hottest(scores)
    assert of_viewer(drawn.viewer) == hottest(scores)
