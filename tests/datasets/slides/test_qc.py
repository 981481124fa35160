import json

import cv2
import numpy as np

from equipoise.datasets.slides.grid import plan_tiles
from equipoise.datasets.slides.mpp import choose_sampling
from equipoise.datasets.slides.qc import PICTURE_PX, overlay_jpeg, picture_of, plan_geojson
from equipoise.datasets.slides.reader import open_slide
from equipoise.datasets.slides.tissue import Tissue, TissueParams, find_tissue


def area(polygon: list) -> float:
    """Area of a polygon with holes (shoelace)."""

    def ring(points: list) -> float:
        x, y = np.array(points[:-1], float).T
        return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2

    return ring(polygon[0]) - sum(ring(hole) for hole in polygon[1:])


def test_geojson_holds_outlines_and_merged_tiles_in_level_0_pixels() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:60] = True
    mask[20:30, 30:40] = False
    mask[0:5, 70:80] = True
    tissue = Tissue(mask, (800, 600), 5, np.zeros((60, 80, 3), np.uint8), 5.0)
    plan = plan_tiles(tissue, choose_sampling(0.5, [1.0], 0.5), [(800, 600)], 100, 0.25)
    content = json.loads(plan_geojson(tissue, plan))
    outline, tiles = (feature["geometry"]["coordinates"] for feature in content["features"])
    assert len(outline) == 2
    assert [len(polygon) - 1 for polygon in outline].count(1) == 1  # one hole
    assert abs(sum(area(polygon) for polygon in outline) - mask.sum() * 100) < 0.03 * mask.sum() * 100
    assert sum(area(polygon) for polygon in tiles) == len(plan) * 100**2
    assert len(tiles) < len(plan)
    assert content["features"][1]["properties"]["tiles"] == len(plan)
    moved = json.loads(plan_geojson(tissue, plan, (300, 20)))["features"]
    for feature, before in zip(moved, (outline, tiles), strict=True):
        shift = np.array(before[0][0]) - np.array(feature["geometry"]["coordinates"][0][0])
        assert (shift == [300, 20]).all()  # QuPath counts from the corner of the scanned area


def test_picture_shows_tissue_tiles_and_glass(write_slide, tissue_image) -> None:
    with open_slide(write_slide([tissue_image])) as reader:
        tissue = find_tissue(reader, TissueParams())
        plan = plan_tiles(tissue, reader.sampling(0.5), reader.level_dimensions, 128, 0.25)
        picture = picture_of(reader, tissue)
        data = overlay_jpeg(picture, tissue, plan)
        assert data == overlay_jpeg(picture, tissue, plan)
    assert max(picture.shape) > max(tissue.mask.shape)  # a small slide is not shown as a few blocks
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert max(image.shape) == PICTURE_PX
    glass, middle = image[10, 10].astype(int), image[250, 300].astype(int)
    assert glass.min() > 225
    assert middle[2] > middle[0]  # purple turned bluer


def test_a_slide_without_tissue_still_has_a_picture() -> None:
    blank = Tissue(np.zeros((30, 20), bool), (200, 300), 5, np.full((30, 20, 3), 240, np.uint8), 8.0)
    assert overlay_jpeg(blank.thumbnail, blank, None)[:2] == b"\xff\xd8"
    content = json.loads(plan_geojson(blank, None))
    assert content["features"][0]["geometry"]["coordinates"] == []
