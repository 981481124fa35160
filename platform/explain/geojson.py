"""A map as GeoJSON for QuPath 0.4 or newer: one tile object per tile, with its score as a measurement.

QuPath's objects (https://qupath.readthedocs.io, "Exporting annotations"; qupath/qupath pull request 1099): ``id`` is a
UUID, ``properties.objectType`` names the kind of object, ``classification`` has a name and a colour, ``measurements``
maps names to numbers. Coordinates are pixels of the full resolution, counted from the corner of what QuPath shows: it
cuts slides that state their scanned area (MIRAX, Leica SCN) to that area, so its corner is subtracted.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Literal

import numpy as np

from equipoise.datasets.atomic_io import atomic_path
from equipoise.platform.explain.captions import away, method, towards
from equipoise.platform.explain.colours import ColourScale, scale_of
from equipoise.platform.explain.tile_scores import TileScores

#: Which tiles are written.
Selection = Literal["all", "top_decile"]

_NAMESPACE = uuid.UUID("6f3b6c1e-4f0f-5c59-9c0e-5d3f1f0e8a11")


def write_geojson(
    scores: TileScores, path: Path, origin: tuple[int, int] = (0, 0), tiles: Selection = "all"
) -> Path:
    """Write a map as a FeatureCollection; the same map always gives the same bytes.

    Parameters
    ----------
    origin
        Corner of the scanned area in level-0 pixels (``SlidePicture.origin``); the file says what was subtracted.
    tiles
        All tiles, or the tenth of them with the highest scores.
    """
    order = scores.order()
    chosen = order if tiles == "all" else order[: max(1, -(-len(order) // 10))]
    collection = {
        "type": "FeatureCollection",
        "about": {
            "slide": scores.slide,
            "task": scores.task,
            "class": scores.class_name,
            "method": scores.method,
            "unit": scores.unit,
            "origin": list(origin),
            "tiles": tiles,
            "synthetic": scores.synthetic,
            "failed_checks": [check.name for check in scores.failed],
        },
        "features": _features(scores, chosen, origin),
    }
    text = json.dumps(collection, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def measurement_name(scores: TileScores) -> str:
    """The name of the score among QuPath's measurements."""
    return f"{scores.title} ({method(scores)})"


def _features(scores: TileScores, chosen: np.ndarray, origin: tuple[int, int]) -> list[dict]:
    name, colours = measurement_name(scores), scale_of(scores)
    rgb = colours.rgb(scores.score[chosen]).tolist()
    positive, negative = (
        _classification(scores, colours, high=True),
        _classification(scores, colours, high=False),
    )
    middle = 0.0 if colours.diverging else float(np.median(scores.score))
    left, top = scores.x[chosen] - origin[0], scores.y[chosen] - origin[1]
    right, bottom = np.rint(left + scores.side).astype(int), np.rint(top + scores.side).astype(int)
    corners = np.stack([left, top, right, bottom], axis=1).tolist()
    key = f"{scores.slide}\0{scores.task}\0{scores.class_name}\0{scores.method}"
    features = []
    for place, (at, (x0, y0, x1, y1), colour) in enumerate(
        zip(chosen.tolist(), corners, rgb, strict=True), 1
    ):
        score = float(scores.score[at])
        measurements = {name: float(f"{score:.5g}"), "rank": place}
        if scores.spread is not None:
            measurements["standard deviation over models"] = float(f"{scores.spread[at]:.5g}")
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{key}\0{scores.x[at]}\0{scores.y[at]}")),
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]],
                },
                "properties": {
                    "objectType": "tile",
                    "classification": positive if score > middle else negative,
                    "color": colour,
                    "isLocked": True,
                    "measurements": measurements,
                },
            }
        )
    return features


def _classification(scores: TileScores, colours: ColourScale, high: bool) -> dict[str, object]:
    """A class of QuPath; a colon would make it a derived class, so there is none in its name."""
    word = (towards if high else away)(scores)
    label = word if scores.signed else f"{word} {scores.class_name}".strip()
    colour = colours.table[-1 if high else 0].tolist()
    return {"name": " ".join(label.replace(":", " ").split()), "color": colour}
