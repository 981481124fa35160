"""A page to look at the maps of one slide: zoom, switch between tasks, jump to the hottest tiles.

The page and its folder of pictures open from disk without a server and without a network: OpenSeadragon (BSD-3-Clause,
in ``assets/``) stands inside the page, maps are pictures of one pixel per tile, and a content security policy refuses
everything else.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.datasets.atomic_io import atomic_path, write_text
from equipoise.platform.explain.captions import RESEARCH_ONLY, away, checks_line, method, towards
from equipoise.platform.explain.colours import ColourScale, scale_of
from equipoise.platform.explain.crops import CROPS, crop_name, files_of, write_crop
from equipoise.platform.explain.deep_zoom import TILE, write_deep_zoom
from equipoise.platform.explain.score_grid import score_grid
from equipoise.platform.explain.slide_picture import SlidePicture, ends
from equipoise.platform.explain.tile_scores import TileScores, scores_stem

_HERE = Path(__file__).parent

#: Most bytes of the pyramid of a slide.
BUDGET = 16_000_000

#: Tiles listed at each end of a map.
LISTED = 8


def write_viewer(maps: Sequence[TileScores], picture: SlidePicture, page: Path) -> Path:
    """Write the page and, beside it, its folder ``<stem>_files`` of pictures.

    Parameters
    ----------
    maps
        Maps of one slide; the first is shown first.
    picture
        The slide, as fine as the viewer shall show it, with the crops of its listed tiles.
    page
        Path of the HTML file.
    """
    files = files_of(page)
    with atomic_path(files) as folder:
        pyramid = write_deep_zoom(picture.pixels, folder / "slide", BUDGET)
        for (x, y), pixels in picture.crops.items():
            write_crop(pixels, folder / CROPS / crop_name(x, y))
    data = {
        "slide": maps[0].slide,
        "picture": [picture.x, picture.y, picture.width, picture.height],
        "mpp": picture.mpp if np.isfinite(picture.mpp) else None,
        "source": {
            "Image": {
                "xmlns": "http://schemas.microsoft.com/deepzoom/2008",
                "Url": f"{_address(files.name)}/slide/",
                "Format": "jpg",
                "Overlap": "0",
                "TileSize": str(TILE),
                "Size": {"Width": str(pyramid.width), "Height": str(pyramid.height)},
            }
        },
        "maps": [_map(scores, picture, files.name) for scores in maps],
    }
    write_text(page, _html(maps, data))
    return page


def remove_viewer(page: Path) -> None:
    """Remove a page and its pictures."""
    page.unlink(missing_ok=True)
    shutil.rmtree(files_of(page), ignore_errors=True)


def _map(scores: TileScores, picture: SlidePicture, files: str) -> dict[str, Any]:
    colours, grid = scale_of(scores), score_grid(scores)
    top, bottom = ends(scores, LISTED)
    return {
        "name": scores_stem(scores.task, scores.class_name, scores.method),
        "title": f"{scores.title} · {method(scores)}",
        "overlay": _uri(overlay_png(scores)),
        "rect": [grid.x, grid.y, grid.width, grid.height],
        "side": scores.side,
        "bar": _stops(colours),
        "towards": towards(scores),
        "away": away(scores),
        "unit": scores.unit,
        "ticks": [_label(colours, score) for score in colours.ticks],
        "verdict": checks_line(scores),
        "failed": bool(scores.failed),
        "checks": [
            {"name": c.name.replace("_", " "), "passed": c.passed, "reason": c.reason} for c in scores.checks
        ],
        "top": [_tile(scores, picture, files, at) for at in top],
        "bottom": [_tile(scores, picture, files, at) for at in bottom],
    }


def _tile(scores: TileScores, picture: SlidePicture, files: str, at: int) -> dict[str, Any]:
    x, y = int(scores.x[at]), int(scores.y[at])
    crop = f"{_address(files)}/{CROPS}/{crop_name(x, y)}" if (x, y) in picture.crops else ""
    return {"x": x, "y": y, "score": _number(float(scores.score[at])), "crop": crop}


def overlay_png(scores: TileScores) -> bytes:
    """The map as RGBA PNG: a pixel per tile, transparent where there is none."""
    from PIL import Image

    grid = score_grid(scores)
    rgba = np.zeros((*grid.values.shape, 4), np.uint8)
    there = ~np.isnan(grid.values)
    rgba[there, :3] = scale_of(scores).rgb(grid.values[there])
    rgba[there, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _stops(colours: ColourScale) -> str:
    """The colour scale for CSS, from left to right."""
    return ",".join("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in colours.table[::15].tolist())


def _label(colours: ColourScale, score: float) -> str:
    beyond = "≥ " if score == colours.high and colours.clipped_high else ""
    beyond = "≤ " if score == colours.low and colours.clipped_low else beyond
    return beyond + _number(score)


def _number(score: float) -> str:
    return f"{score:.3g}".replace("-", "−")


def _html(maps: Sequence[TileScores], data: dict[str, Any]) -> str:
    from markupsafe import Markup

    library, own = _asset("assets/openseadragon.min.js"), _asset("templates/viewer.js")
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return _template().render(
        slide=maps[0].slide,
        about=", ".join(part for part in (maps[0].patient, maps[0].cohort) if part),
        synthetic=any(scores.synthetic for scores in maps),
        research_only=RESEARCH_ONLY,
        maps=[f"{scores.title} · {method(scores)}" for scores in maps],
        style=Markup(_asset("templates/viewer.css")),  # noqa: S704 - our own file
        library=Markup(library),  # noqa: S704 - a file of the package
        script=Markup(own),  # noqa: S704 - our own file
        # "<" would end the element; JSON reads the escape as the same letter.
        data=Markup(text.replace("<", "\\u003c")),  # noqa: S704 - escaped on this line
        hashes=f"{_hash(library)} {_hash(own)}",
    )


@cache
def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8").strip()


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_HERE / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("viewer.html")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _address(name: str) -> str:
    from urllib.parse import quote

    return quote(name)
