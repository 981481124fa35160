"""Small slides with known pixels: tiled TIFFs without compression, to compare what is read exactly."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from equipoise.datasets.synthetic.tiff import (
    ASCII,
    LONG,
    SHORT,
    Tag,
    TiffWriter,
    TiledImage,
    picture_tags,
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
def write_scn(tmp_path_factory: pytest.TempPathFactory) -> WriteSlide:
    """``write(pixels, left, top, size)``: a Leica slide of ``size`` (width, height), only ``pixels`` of it scanned."""

    def write(
        pixels: np.ndarray, left: int, top: int, size: tuple[int, int], mpp: float = 0.5, tile: int = 64
    ) -> Path:
        path = tmp_path_factory.mktemp("slides") / "slide.scn"
        nm = round(mpp * 1000)
        macro = np.full((max(1, size[1] // 16), max(1, size[0] // 16), 3), 230, np.uint8)
        places = [(macro, (0, 0), size), (pixels, (left, top), pixels.shape[1::-1])]
        # All of these elements: with fewer of them OpenSlide ends the process (segmentation fault).
        settings = (
            "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings>"
        )
        about = "".join(
            '<image><creationDate>2026-01-01T00:00:00Z</creationDate><device model="test" version="1"/><pixels>'
            f'<dimension sizeX="{image.shape[1]}" sizeY="{image.shape[0]}" r="0" ifd="{at}"/></pixels>'
            f'<view sizeX="{w * nm}" sizeY="{h * nm}" offsetX="{x * nm}" offsetY="{y * nm}"/>{settings}</image>'
            for at, (image, (x, y), (w, h)) in enumerate(places)
        )
        about = (
            '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
            f'<collection sizeX="{size[0] * nm}" sizeY="{size[1] * nm}"><barcode>x</barcode>{about}</collection></scn>'
        )
        with path.open("wb") as file:
            writer = TiffWriter(file)
            for picture, _, _ in places:
                height, width = picture.shape[:2]
                image = TiledImage(width, height, tile)
                whole = np.pad(picture, ((0, -height % tile), (0, -width % tile), (0, 0)))
                for y in range(0, height, tile):
                    for x in range(0, width, tile):
                        writer.tile(image, whole[y : y + tile, x : x + tile].tobytes())
                writer.directory(
                    [
                        Tag(254, LONG, [0]),
                        Tag(256, LONG, [width]),
                        Tag(257, LONG, [height]),
                        Tag(258, SHORT, [8, 8, 8]),
                        Tag(259, SHORT, [1]),
                        Tag(262, SHORT, [2]),
                        Tag(270, ASCII, about),
                        Tag(277, SHORT, [3]),
                        Tag(284, SHORT, [1]),
                        *resolution_tags(10_000 / mpp),
                        *tile_tags(writer, image),
                    ]
                )
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


class _Bytes(Tag):
    """A tag of undefined bytes."""

    def encode(self) -> tuple[int, bytes]:
        return len(self.value), bytes(self.value)  # type: ignore[arg-type]


def shared_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG stream as scanners do: tables for the directory, the rest (without markers of colour) per tile."""
    at, tables, rest = 2, b"", b""
    while jpeg[at + 1] != 0xDA:
        segment = jpeg[at : at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])]
        if jpeg[at + 1] in (0xDB, 0xC4):
            tables += segment
        elif not 0xE0 <= jpeg[at + 1] <= 0xEF:
            rest += _numbered(segment, 10, 3) if jpeg[at + 1] == 0xC0 else segment
        at += len(segment)
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + _numbered(jpeg[at:], 5, 2)


def _numbered(segment: bytes, at: int, step: int) -> bytes:
    """Components called 1, 2, 3: a decoder takes that for YCbCr, whatever they are."""
    changed = bytearray(segment)
    changed[at : at + 3 * step : step] = b"\1\2\3"
    return bytes(changed)


@pytest.fixture(scope="session")
def write_jpeg_slide(tmp_path_factory: pytest.TempPathFactory) -> WriteSlide:
    """``write(levels, rgb=..., tables=..., big=..., spoil=...)``: an Aperio slide of JPEG tiles.

    ``rgb`` stores RGB instead of YCbCr, ``tables`` shares tables and drops all markers, ``spoil`` maps (level, tile) to
    a function of the stream; a tile of no bytes is left out.
    """

    def encoded(pixels: np.ndarray, rgb: bool) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=85, subsampling=0 if rgb else 2, keep_rgb=rgb)
        return stream.getvalue()

    def write(
        levels: Sequence[np.ndarray],
        rgb: bool = False,
        tables: bool = False,
        big: bool = False,
        tile: int = 64,
        mpp: float = 0.5,
        spoil: dict[tuple[int, int], Callable[[bytes], bytes]] | None = None,
    ) -> Path:
        path = tmp_path_factory.mktemp("jpeg") / "slide.svs"
        with path.open("wb") as file:
            writer = TiffWriter(file, big=big)
            for at, pixels in enumerate(levels):
                height, width = pixels.shape[:2]
                image, shared = TiledImage(width, height, tile), b""
                whole = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
                for y in range(0, height, tile):
                    for x in range(0, width, tile):
                        stream = encoded(whole[y : y + tile, x : x + tile], rgb)
                        if tables:
                            shared, stream = shared_tables(stream)
                        stream = (spoil or {}).get((at, len(image.counts)), bytes)(stream)
                        writer.tile(image, stream)
                        if not stream:
                            image.offsets[-1] = 0
                about = f"Aperio test\n{width}x{height} ({tile}x{tile})|MPP = {mpp}"
                tags = {tag.code: tag for tag in picture_tags(width, height, subfile=0, description=about)}
                tags |= {tag.code: tag for tag in tile_tags(writer, image)}
                tags[262] = Tag(262, SHORT, [2 if rgb else 6])
                tags[530] = Tag(530, SHORT, [1, 1] if rgb else [2, 2])
                if tables:
                    tags[347] = _Bytes(347, 7, tuple(shared))
                writer.directory(tags.values())
        return path

    return write


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """uint8 ``[470, 620, 3]``: smooth enough for JPEG, and different everywhere."""
    rng = np.random.default_rng(8)
    coarse = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return cv2.resize(coarse, (620, 470), interpolation=cv2.INTER_CUBIC)
