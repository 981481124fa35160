"""A map as a PNG to look at: the slide below, tiles in colours, and around them all that a reader must know."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.atomic_io import atomic_path
from equipoise.platform.explain.captions import (
    RESEARCH_ONLY,
    away,
    checks_line,
    drawable,
    failed_checks,
    method,
    towards,
)
from equipoise.platform.explain.colours import ColourScale, scale_of
from equipoise.platform.explain.slide_picture import SlidePicture
from equipoise.platform.explain.tile_scores import TileScores

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

#: Longest side of the picture inside its frame, and the least width that text needs.
PICTURE_PX, _LEAST_WIDTH = 1100, 460

#: Ending and longest side of the small picture beside the PNG: the map alone, without the names of slide and cohort.
PREVIEW, _PREVIEW_PX = ".jpg", 560

#: How much a tile's colour covers the slide.
OPACITY = 0.6

_MARGIN, _BAR, _LABELS = 24, 20, 132
_INK, _SOFT, _RED = (34, 48, 60), (84, 98, 112), (166, 29, 36)
_EDGE = (20, 20, 20)


@dataclass(frozen=True)
class Heatmap:
    """Where a heat-map was written, and how its pixels belong to the slide.

    Attributes
    ----------
    path
        The PNG.
    left, top, width, height
        The slide's picture inside the PNG, in pixels.
    x, y
        The level-0 pixel of that corner.
    scale
        PNG pixels per level-0 pixel, across and down.
    """

    path: Path
    left: int
    top: int
    width: int
    height: int
    x: float
    y: float
    scale: tuple[float, float]


def write_heatmap(scores: TileScores, picture: SlidePicture, path: Path) -> Heatmap:
    """Draw a map over the picture of its slide and write it as PNG, and small and without names as JPEG beside it.

    Parameters
    ----------
    scores
        The map.
    picture
        Of the same slide; blank paper is written upon as such.
    """
    from PIL import Image, ImageDraw

    colours = scale_of(scores)
    shown = picture.resized(PICTURE_PX)
    body = Image.fromarray(_coloured(scores, shown, colours))
    _frame_hottest(ImageDraw.Draw(body), scores, shown)
    if scores.synthetic:
        body = _watermarked(body)
    if scores.failed:
        body = _banner(body, scores)
    width = max(body.width, _LEAST_WIDTH)
    _save_preview(body, shown, path.with_suffix(PREVIEW))
    header, footer = _header(scores, shown), _footer(scores, shown)
    inner = width + _MARGIN + _BAR + _LABELS
    top, above = _text_height(header, inner), _MARGIN
    bottom = _text_height(footer, inner)
    frame_height = max(body.height, 240)
    page = Image.new(
        "RGB", (inner + 2 * _MARGIN, above + top + 12 + frame_height + 14 + bottom + _MARGIN), (255, 255, 255)
    )
    draw = ImageDraw.Draw(page)
    _write(draw, header, _MARGIN, above, inner)
    corner = (_MARGIN, above + top + 12)
    page.paste(body, corner)
    draw.rectangle(
        [corner[0] - 1, corner[1] - 1, corner[0] + body.width, corner[1] + body.height],
        outline=(200, 206, 212),
    )
    _scale_bar(draw, shown, corner, body.size)
    _colour_bar(draw, page, scores, colours, corner[0] + width + _MARGIN, corner[1], frame_height)
    _write(draw, footer, _MARGIN, corner[1] + frame_height + 14, inner)
    _save(page, path)
    rows, columns = shown.pixels.shape[:2]
    band = body.height - rows
    return Heatmap(path, corner[0], corner[1] + band, columns, rows, shown.x, shown.y, shown.scale)


def _coloured(scores: TileScores, picture: SlidePicture, colours: ColourScale) -> NDArray[np.uint8]:
    """The picture with every tile tinted, the higher score on top where tiles overlap."""
    sx, sy = picture.scale
    rows, columns = picture.pixels.shape[:2]
    value = np.full((rows, columns), np.nan, np.float32)
    x, y = scores.x - picture.x, scores.y - picture.y
    left, right = _edges(x, scores.side, sx, columns)
    top, bottom = _edges(y, scores.side, sy, rows)
    for at in scores.order()[::-1]:
        value[top[at] : bottom[at], left[at] : right[at]] = scores.score[at]
    covered = ~np.isnan(value)
    out = picture.pixels.copy()
    opacity = 1.0 if picture.missing else OPACITY
    tint = colours.rgb(value[covered]).astype(np.float32)
    out[covered] = np.rint(opacity * tint + (1 - opacity) * out[covered]).astype(np.uint8)
    return out


def _edges(
    start: NDArray[np.floating], side: float, scale: float, limit: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and last-but-one pixel of each tile; neighbours share an edge, and no tile is lost to rounding."""
    first = np.clip(np.rint(start * scale), 0, limit - 1).astype(np.intp)
    last = np.clip(np.rint((start + side) * scale), 0, limit).astype(np.intp)
    return first, np.maximum(last, first + 1)


def _frame_hottest(draw: ImageDraw.ImageDraw, scores: TileScores, picture: SlidePicture) -> None:
    """A frame around the tile with the highest score, outside of it so that its colour stays whole."""
    sx, sy = picture.scale
    at = scores.order()[0]
    left, top = (float(scores.x[at]) - picture.x) * sx, (float(scores.y[at]) - picture.y) * sy
    right, bottom = left + scores.side * sx, top + scores.side * sy
    box = [round(left), round(top), round(right) - 1, round(bottom) - 1]
    for grow, colour in ((1, _EDGE), (2, _EDGE), (3, (255, 255, 255))):
        draw.rectangle([box[0] - grow, box[1] - grow, box[2] + grow, box[3] + grow], outline=colour)


def _watermarked(body: Image.Image) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    size = max(18, min(body.size) // 7)
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox("SYNTHETIC")
    mark = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8), 0)
    ImageDraw.Draw(mark).text((4 - left, 4 - top), "SYNTHETIC", font=font, fill=64)
    mark = mark.rotate(24, expand=True)
    if mark.width > body.width or mark.height > body.height:
        mark.thumbnail(body.size)
    layer = Image.new("L", body.size, 0)
    layer.paste(mark, ((body.width - mark.width) // 2, (body.height - mark.height) // 2))
    return Image.composite(Image.new("RGB", body.size, _RED), body, layer)


def _banner(body: Image.Image, scores: TileScores) -> Image.Image:
    """A red band over the picture: whoever cuts the map out of its frame still sees that it failed."""
    from PIL import Image, ImageDraw

    names = ", ".join(check.name.replace("_", " ") for check in scores.failed)
    lines: _Lines = [(17, (255, 255, 255), f"FAILED CHECK: {names}")]
    height = _text_height(lines, body.width - 20) + 12
    page = Image.new("RGB", (body.width, body.height + height), _RED)
    _write(ImageDraw.Draw(page), lines, 10, 6, body.width - 20)
    page.paste(body, (0, height))
    return page


#: Lines of text: size, colour, text.
_Lines = list[tuple[int, tuple[int, int, int], str]]


def _header(scores: TileScores, picture: SlidePicture) -> _Lines:
    lines: _Lines = [(24, _INK, scores.title)]
    cohort = f"cohort {scores.cohort}" if scores.cohort else ""
    about = [f"slide {scores.slide}", cohort, f"{scores.kind} task" if scores.kind else "", method(scores)]
    lines.append((15, _SOFT, " · ".join(part for part in about if part)))
    return lines


def _footer(scores: TileScores, picture: SlidePicture) -> _Lines:
    lines: _Lines = []
    for sentence in failed_checks(scores):
        lines.append((16, _RED, f"FAILED CHECK. {sentence}"))
    if scores.failed:
        lines.append((16, _RED, "Do not read this map as evidence."))
    if picture.missing:
        lines.append(
            (14, _INK, f"Blank paper: {picture.missing}. Pixel size unknown, so there is no scale bar.")
        )
    hottest = scores.order()[0]
    where = f"the tile at level-0 pixel ({scores.x[hottest]}, {scores.y[hottest]})"
    framed = f"Framed: the highest score, {scores.score[hottest]:.3g}, in {where}."
    lines.append((14, _SOFT, f"{len(scores):,} tiles. {framed} {checks_line(scores)}"))
    lines.append((14, _SOFT, ("SYNTHETIC data. " if scores.synthetic else "") + RESEARCH_ONLY))
    return lines


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines no wider than ``width`` pixels; a word that is too long alone is cut."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    lines, line = [], ""
    for word in drawable(text).split():
        while font.getlength(word) > width:
            fits = max(1, int(len(word) * width / font.getlength(word)) - 1)
            lines += [line] * bool(line) + [word[:fits]]
            line, word = "", word[fits:]
        longer = f"{line} {word}".strip()
        if font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line] if line else lines


def _text_height(lines: _Lines, width: int) -> int:
    return sum(len(_wrapped(text, size, width)) * round(size * 1.35) for size, _, text in lines)


def _write(draw: ImageDraw.ImageDraw, lines: _Lines, x: int, y: int, width: int) -> None:
    for size, colour, text in lines:
        for line in _wrapped(text, size, width):
            draw.text((x, y), line, fill=colour, font_size=size)
            y += round(size * 1.35)


def _scale_bar(
    draw: ImageDraw.ImageDraw, picture: SlidePicture, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    """A bar of a round length in the lower left corner of the picture."""
    if math.isnan(picture.mpp):
        return
    per_mm = picture.scale[0] * 1000 / picture.mpp
    length = round_length(size[0] / 4 / per_mm)
    pixels = max(1, round(length * per_mm))
    label = f"{length:g} mm" if length >= 0.1 else f"{length * 1000:g} um"
    x, y = corner[0] + 14, corner[1] + size[1] - 16
    wide = max(pixels, draw.textlength(label, font_size=15))
    draw.rectangle([x - 7, y - 26, x + wide + 7, y + 10], fill=(255, 255, 255))
    draw.rectangle([x, y, x + pixels - 1, y + 3], fill=_EDGE)
    draw.text((x, y - 22), label, fill=_INK, font_size=15)


def round_length(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is no longer than ``most``.

    >>> round_length(7.3), round_length(0.34)
    (5.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(most))
    step = max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))
    return float(f"{step * power:.1g}")


def _colour_bar(
    draw: ImageDraw.ImageDraw,
    page: Image.Image,
    scores: TileScores,
    colours: ColourScale,
    x: int,
    y: int,
    height: int,
) -> None:
    """The scale from high to low, with what its ends mean and the unit."""
    from PIL import Image

    width = _BAR + _LABELS
    head = _wrapped(towards(scores), 14, width)
    foot = [*_wrapped(away(scores), 14, width), "", *_wrapped(scores.unit, 13, width)]
    line = 19
    start, end = y + line * len(head) + 4, y + height - line * len(foot) - 4
    _write(draw, [(14, _INK, towards(scores))], x, y, width)
    bar = np.repeat(colours.table[::-1, None], _BAR, axis=1)
    page.paste(Image.fromarray(bar).resize((_BAR, end - start), Image.Resampling.BILINEAR), (x, start))
    for score in colours.ticks:
        at = end - 1 - (end - start - 1) * float(colours.position(np.array([score]))[0])
        draw.line([x + _BAR, at, x + _BAR + 5, at], fill=_INK)
        sign = ">= " if score == colours.high and colours.clipped_high else ""
        sign = "<= " if score == colours.low and colours.clipped_low else sign
        draw.text(
            (x + _BAR + 9, min(max(at - 9, start - 4), end - 14)),
            f"{sign}{score:.3g}",
            fill=_INK,
            font_size=14,
        )
    _write(draw, [(14, _INK, away(scores))], x, end + 4, width)
    _write(
        draw, [(13, _SOFT, scores.unit)], x, y + height - line * len(_wrapped(scores.unit, 13, width)), width
    )


def _save_preview(body: Image.Image, picture: SlidePicture, path: Path) -> None:
    from PIL import Image, ImageDraw

    small = body.copy()
    _scale_bar(ImageDraw.Draw(small), picture, (0, 0), small.size)
    small.thumbnail((_PREVIEW_PX, _PREVIEW_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _save(page: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    page.save(buffer, "PNG", compress_level=6)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
