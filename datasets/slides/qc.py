"""Quality control files: a thumbnail with the tissue outline and the kept tiles, and the same as GeoJSON.

Both are deterministic (no dates, no names), so that a rebuilt store has the same files.
"""

from __future__ import annotations

import json

import cv2
import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.reader import SlideReader
from equipoise.datasets.slides.tissue import Tissue

#: Longest side of the picture in pixels.
PICTURE_PX = 640

_TISSUE_RGB = (20, 120, 60)
_TILE_RGB = (40, 90, 200)

#: What was taken out of the tissue, if anything was.
_REJECTED_RGB = {"ink": (220, 120, 20), "blur": (200, 40, 40)}


def picture_of(reader: SlideReader, tissue: Tissue) -> NDArray[np.uint8]:
    """An image of the whole slide worth looking at, uint8 ``[h, w, 3]``.

    The mask's own thumbnail where it is large enough; for a small slide, the coarsest level that is.
    """
    if max(tissue.mask.shape) >= PICTURE_PX // 2:
        return tissue.thumbnail
    fine = [
        d
        for size, d in zip(reader.level_dimensions, reader.level_downsamples, strict=True)
        if max(size) >= 320
    ]
    return reader.thumbnail(max(fine, default=1.0) * reader.mpp)[0]


def overlay_jpeg(picture: NDArray[np.uint8], tissue: Tissue, plan: TilePlan | None) -> bytes:
    """The picture of a slide, tissue outlined in green (ink in orange, blur in red), kept tiles tinted blue, as JPEG.

    Parameters
    ----------
    picture
        uint8 ``[h, w, 3]`` over the whole slide, from :func:`picture_of`.
    tissue, plan
        What was found on it.
    """
    height, width = picture.shape[:2]
    scale = PICTURE_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    if plan is not None:
        shown = _tinted(shown, tissue, plan)
    for mask, colour in [*_rejected(tissue).values(), (tissue.mask, _TISSUE_RGB)]:
        outline = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(outline, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(shown, contours, -1, colour, 1)
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(shown, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    assert ok, "the JPEG encoder takes every 8-bit RGB image"
    return data.tobytes()


def plan_geojson(tissue: Tissue, plan: TilePlan | None, origin: tuple[int, int] = (0, 0)) -> bytes:
    """Tissue polygons, ink and blur if there are any, and kept tiles, as a GeoJSON FeatureCollection.

    In level-0 pixels; QuPath reads it. Neighbouring tiles of a row are merged into one rectangle: a few hundred
    polygons instead of tens of thousands.

    Parameters
    ----------
    tissue, plan
        What was found on the slide.
    origin
        :attr:`SlideReader.origin`: QuPath counts from there.
    """
    sx = tissue.dimensions[0] / tissue.mask.shape[1]
    sy = tissue.dimensions[1] / tissue.mask.shape[0]
    features = [_feature("tissue", _TISSUE_RGB, _outlines(tissue.mask, sx, sy), {}, origin)]
    for name, (mask, colour) in _rejected(tissue).items():
        features.append(_feature(name, colour, _outlines(mask, sx, sy), {}, origin))
    if plan is not None:
        properties = {
            "tiles": len(plan),
            "tile_px": plan.px,
            "mpp": round(plan.mpp, 6),
            "side": round(plan.side, 4),
        }
        features.append(_feature("tiles", _TILE_RGB, _runs(plan), properties, origin))
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")).encode()


def _rejected(tissue: Tissue) -> dict[str, tuple[NDArray[np.bool_], tuple[int, int, int]]]:
    """Mask and colour of what was found and is no tissue, by name."""
    masks = {"ink": tissue.ink, "blur": tissue.blur}
    return {
        name: (mask, _REJECTED_RGB[name]) for name, mask in masks.items() if mask is not None and mask.any()
    }


def _tinted(picture: np.ndarray, tissue: Tissue, plan: TilePlan) -> np.ndarray:
    tint = picture.copy()
    sx = picture.shape[1] / tissue.dimensions[0]
    sy = picture.shape[0] / tissue.dimensions[1]
    for x, y in zip(plan.x.tolist(), plan.y.tolist(), strict=True):
        corner = (int(x * sx), int(y * sy))
        opposite = (
            max(corner[0], int((x + plan.side) * sx) - 1),
            max(corner[1], int((y + plan.side) * sy) - 1),
        )
        cv2.rectangle(tint, corner, opposite, _TILE_RGB, -1)
    return cv2.addWeighted(tint, 0.25, picture, 0.75, 0)


def _outlines(mask: NDArray[np.bool_], sx: float, sy: float) -> list[list[list[list[int]]]]:
    """Polygons with holes, in level-0 pixels; outlines run along the edges of mask pixels."""
    # Doubled, so that contours through pixel centres become outlines that enclose whole mask pixels.
    doubled = np.pad(mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1), 1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_L1)
    polygons: dict[int, list[list[list[int]]]] = {}
    for at, contour in enumerate(contours):
        points = contour[:, 0, :].astype(float)
        if len(points) < 3:
            continue
        ring: list[list[int]] = np.rint((points - 0.5) / 2 * (sx, sy)).astype(int).tolist()
        ring.append(ring[0])
        parent = int(hierarchy[0, at, 3])
        if parent < 0:
            polygons.setdefault(at, []).insert(0, ring)
        elif parent in polygons or len(contours[parent]) >= 3:
            polygons.setdefault(parent, []).append(ring)
    return [polygons[at] for at in sorted(polygons)]


def _runs(plan: TilePlan) -> list[list[list[list[int]]]]:
    """One rectangle per run of neighbouring tiles in a row."""
    rectangles = []
    start = 0
    for at in range(1, len(plan) + 1):
        joined = (
            at < len(plan)
            and plan.y[at] == plan.y[start]
            and plan.x[at] - plan.x[at - 1] <= np.ceil(plan.side)
        )
        if joined:
            continue
        left, top = int(plan.x[start]), int(plan.y[start])
        right, bottom = round(float(plan.x[at - 1]) + plan.side), round(top + plan.side)
        rectangles.append([[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]])
        start = at
    return rectangles


def _feature(
    name: str,
    rgb: tuple[int, int, int],
    polygons: list[list[list[list[int]]]],
    properties: dict[str, float],
    origin: tuple[int, int],
) -> dict:
    shifted = [[[[x - origin[0], y - origin[1]] for x, y in ring] for ring in rings] for rings in polygons]
    return {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": shifted},
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": name, "color": rgb},
            **properties,
        },
    }
