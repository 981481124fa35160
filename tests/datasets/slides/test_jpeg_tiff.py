"""Tiles decoded without OpenSlide are OpenSlide's, byte by byte."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import simplejpeg

from equipoise.datasets.slides import tiff_directory
from equipoise.datasets.slides.jpeg_tiff import JpegLevel, JpegTiff
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import SlideReader, on_white, open_slide
from equipoise.datasets.synthetic.containers import SlideInfo, open_container
from equipoise.datasets.synthetic.pyramid import Pyramid


def shrunk(pixels: np.ndarray, factor: int) -> np.ndarray:
    return np.ascontiguousarray(pixels[::factor, ::factor])


def tiles_that_differ(path: Path) -> dict[int, int]:
    """Per level that is decoded here, how many of all its tiles are not OpenSlide's."""
    with openslide.OpenSlide(path) as bare:
        tiff = JpegTiff(path, bare.properties["openslide.vendor"], bare.level_dimensions)
        differing = {}
        for number, level in enumerate(tiff.levels):
            if not isinstance(level, JpegLevel):
                continue
            differing[number] = 0
            for index in range(len(level.counts)):
                x = index % level.columns * level.tile[0]
                y = index // level.columns * level.tile[1]
                size = (min(level.tile[0], level.width - x), min(level.tile[1], level.height - y))
                ours, problems = tiff.windows(level, np.array([x]), np.array([y]), size)
                step = round(bare.level_downsamples[number])
                theirs = on_white(np.asarray(bare.read_region((x * step, y * step), number, size)))
                differing[number] += bool(problems) or not np.array_equal(ours[0], theirs)
        tiff.close()
    return differing


def both(path: Path, **how: object) -> tuple[SlideReader, SlideReader]:
    return open_slide(path, **how), open_slide(path, fast=False, **how)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("rgb", "tables"), [(False, False), (False, True), (True, True), (True, False)])
def test_all_tiles_of_all_levels_equal_openslide(write_jpeg_slide, picture, rgb, tables, big) -> None:
    levels = [picture[:448, :608], shrunk(picture[:448, :608], 2)]  # 64 px tiles: the last ones are cut
    path = write_jpeg_slide(levels, rgb=rgb, tables=tables, big=big)
    assert tiles_that_differ(path) == {0: 0, 1: 0}


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "tiles"), [("CMU-1-Small-Region.svs", 130), ("wsic-CMU-1-Small-Region.jpeg.tiff", 108)]
)
def test_all_tiles_of_real_slides_equal_openslide(shared_data: Path, name: str, tiles: int) -> None:
    path = shared_data / "slides" / name
    assert tiles_that_differ(path) == {0: 0}
    with openslide.OpenSlide(path) as bare:
        level = JpegTiff(path, bare.properties["openslide.vendor"], bare.level_dimensions).level(0)
    assert level is not None
    assert len(level.counts) == tiles


@pytest.mark.real
def test_without_the_colour_marker_a_real_slide_comes_out_wrong_and_is_noticed(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    monkeypatch.setattr(tiff_directory, "APP14", b"")
    assert tiles_that_differ(path) == {0: 130}
    fast, slow = both(path)
    with fast, slow:
        np.testing.assert_array_equal(
            fast.read(700, 900, 300, 300, (300, 300)), slow.read(700, 900, 300, 300, (300, 300))
        )
        assert fast.kind.startswith("openslide (level 0: pixels differ from OpenSlide's by up to ")


def test_the_colour_marker_is_for_rgb_only(write_jpeg_slide, picture, monkeypatch) -> None:
    monkeypatch.setattr(tiff_directory, "APP14", b"")
    assert tiles_that_differ(write_jpeg_slide([picture], rgb=True, tables=True))[0] == 80
    assert tiles_that_differ(write_jpeg_slide([picture], tables=True))[0] == 0


@pytest.mark.parametrize("container", ["aperio", "generic", "philips", "trestle"])
def test_synthetic_slides_of_every_vendor(container: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    base = cv2.resize(
        rng.integers(0, 256, (40, 56, 4), dtype=np.uint8), (1120, 800), interpolation=cv2.INTER_CUBIC
    )
    path = tmp_path / f"slide.{'svs' if container == 'aperio' else 'tiff'}"
    sink = open_container(container, path, SlideInfo("SYN-AA-0001", "syn-x", 1, 1120, 800, 0.25, 40, 80))
    pyramid = Pyramid(sink, 1120, 800, 80)
    for top in range(0, 800, 256):
        pyramid.push(base[top : top + 256])
    sink.finish(pyramid.finish())
    sink.close()
    if container == "trestle":  # may overlap its tiles: not on the list
        assert tiles_that_differ(path) == {}
    else:
        result = tiles_that_differ(path)
        assert 0 in result
        assert not any(result.values())
    fast, slow = both(path)
    with fast, slow:
        for side, px in ((128, 128), (256, 128), (640, 128), (400, 224)):
            a, b = (reader.read(112, 96, side, side, (px, px)) for reader in (fast, slow))
            np.testing.assert_array_equal(a, b)
        assert fast.kind == ("openslide" if container == "trestle" else "jpeg-tiff")
        assert slow.kind == "openslide"


@pytest.mark.parametrize("scale", [1.0, 0.5 / 0.2527, 2.0, 2.5, 3.0, 4.0])
def test_squares_equal_openslide_s_at_any_scale(write_jpeg_slide, picture, scale: float) -> None:
    fast, slow = both(write_jpeg_slide([picture]))
    px = 48
    side = px * scale
    corners = [(x, y) for y in range(0, int(470 - side), 96) for x in range(0, int(620 - side), 96)]
    x, y = np.array(corners, np.int32).T
    with fast, slow:
        got, problems = fast.read_many(x, y, side, px)
        expected, _ = slow.read_many(x, y, side, px)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(got[1], fast.read(int(x[1]), int(y[1]), side, side, (px, px)))
        assert not problems
        assert fast.kind == "jpeg-tiff"


@pytest.mark.parametrize(
    ("x", "y", "side", "px"), [(590, 440, 64, 64), (-20, -10, 80, 80), (580, 400, 128, 64), (900, 0, 64, 64)]
)
def test_outside_the_slide_is_white(write_jpeg_slide, picture, x, y, side, px) -> None:
    fast, slow = both(write_jpeg_slide([picture]))
    with fast, slow:
        got = fast.read(x, y, side, side, (px, px))
        np.testing.assert_array_equal(got, slow.read(x, y, side, side, (px, px)))
        assert (got.reshape(-1, 3) == 255).all(axis=1).any()


def test_tiles_that_were_left_out_are_as_openslide_shows_them(write_jpeg_slide, picture) -> None:
    levels = [picture[:448, :608], shrunk(picture[:448, :608], 2)]
    spoil = {(0, 12): lambda _: b"", (1, 3): lambda _: b""}
    fast, slow = both(write_jpeg_slide(levels, spoil=spoil))
    with fast, slow:
        got = fast.read(100, 60, 150, 150, (150, 150))
        np.testing.assert_array_equal(got, slow.read(100, 60, 150, 150, (150, 150)))
        assert (got[10:60, 40:80] == 255).all()  # tile 12 is at x=128, y=64
        assert fast.kind == "jpeg-tiff"
        coarse = fast.read(350, 0, 128, 128, (64, 64))
        np.testing.assert_array_equal(coarse, slow.read(350, 0, 128, 128, (64, 64)))
        assert "tiles left out of level 1" in fast.kind


def halved(stream: bytes) -> bytes:
    return stream[: len(stream) // 2]


def zeroed(stream: bytes) -> bytes:
    return bytes(len(stream))


@pytest.mark.parametrize(("spoil", "says"), [(halved, "Premature end"), (zeroed, "no JPEG stream")])
def test_a_damaged_tile_raises_and_its_neighbours_do_not(write_jpeg_slide, picture, spoil, says) -> None:
    path = write_jpeg_slide([picture], spoil={(0, 0): spoil})
    with open_slide(path) as reader:
        for resample in ("area", "dct"):
            x, y = np.array([0, 40, 64, 128], np.int32), np.zeros(4, np.int32)
            pixels, problems = reader.read_many(x, y, 64, 32, resample)
            assert sorted(problems) == [0, 1]
            assert says in problems[0]
            assert "x=40 y=0 level=0" in problems[1]
            np.testing.assert_array_equal(pixels[2], reader.read(64, 0, 64, 64, (32, 32), resample))
            with pytest.raises(SlideProblem, match=says) as caught:
                reader.read(0, 0, 64, 64, (64, 64), resample)
            assert caught.value.status == "unreadable"
        assert reader.kind == "jpeg-tiff"


def test_a_tile_behind_the_end_of_the_file(write_jpeg_slide, picture) -> None:
    path = write_jpeg_slide([picture])
    with openslide.OpenSlide(path) as bare:
        tiff = JpegTiff(path, "aperio", bare.level_dimensions)
    level = tiff.level(0)
    assert level is not None
    level.offsets[3], level.counts[5] = 2**40, 2**50
    x = np.arange(8) * 64
    _pixels, problems = tiff.windows(level, x, x * 0, (64, 64))
    assert problems == {3: "the file ends before this tile does", 5: "the file ends before this tile does"}
    tiff.close()


def test_each_tile_is_read_and_decoded_once_per_block(write_jpeg_slide, picture, monkeypatch) -> None:
    path = write_jpeg_slide([picture])
    decoded, reads = [], []
    decode, pread = simplejpeg.decode_jpeg, os.pread
    with open_slide(path) as reader:
        reader.read(0, 0, 64, 64, (64, 64))  # the self-check is over
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: decoded.append(1) or decode(*a, **k))
        monkeypatch.setattr(os, "pread", lambda *a: reads.append(a[1:]) or pread(*a))
        y, x = (grid.ravel().astype(np.int32) * 48 for grid in np.mgrid[:4, :8])
        reader.read_many(x, y, 48, 48)
    assert len(decoded) == 6 * 3  # 384 x 192 px of tiles of 64
    assert len(reads) <= 3  # rows of neighbours in one go, or all at once
    assert [offset for _, offset in reads] == sorted(offset for _, offset in reads)


def test_dct_decodes_smaller_tiles(write_jpeg_slide, picture) -> None:
    path = write_jpeg_slide([picture], tile=240)
    with open_slide(path) as reader:
        level = reader._jpeg.level(0)
        stream = path.read_bytes()[level.offsets[0] : level.offsets[0] + level.counts[0]]
        for reduce in (1, 2, 4, 8):
            assert level.decode(stream, reduce).shape == (240 // reduce, 240 // reduce, 3)
        half = simplejpeg.decode_jpeg(stream, min_height=120, min_width=120, min_factor=2)
        np.testing.assert_array_equal(reader.read(20, 40, 200, 200, (100, 100), "dct"), half[20:120, 10:110])
        area, dct = (reader.read(20, 40, 200, 200, (80, 80), how).astype(float) for how in ("area", "dct"))
        assert 0 < np.abs(area - dct).mean() < 4
        # Corners between pixels of the smaller picture are read in full, not moved.
        odd = [reader.read(21, 40, 200, 200, (100, 100), how) for how in ("area", "dct")]
        np.testing.assert_array_equal(*odd)


@pytest.mark.real
def test_dct_of_a_real_slide_is_half_the_tile(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as reader:
        got = reader.read(480, 720, 240, 240, (120, 120), "dct").astype(float)
        area = reader.read(480, 720, 240, 240, (120, 120)).astype(float)
    assert got.shape == (120, 120, 3)
    assert 10 * np.log10(255**2 / ((got - area) ** 2).mean()) > 35


def test_dct_finds_its_resolution_and_says_which(write_jpeg_slide, write_slide, picture) -> None:
    with open_slide(write_jpeg_slide([picture], mpp=0.2527)) as reader:
        sampling = reader.sampling(0.5, "dct")
        assert (sampling.reduce, sampling.native, sampling.mpp) == (2, True, 0.5054)
        assert reader.sampling(0.5).reduce == 1
    with open_slide(write_slide([picture], mpp=0.2527)) as reader:  # no JPEG: nothing to decode smaller
        assert reader.sampling(0.5, "dct") == reader.sampling(0.5)


def test_other_codecs_are_openslide_s(write_slide, noise) -> None:
    with open_slide(write_slide([noise])) as reader:
        reader.read(0, 0, 64, 64, (64, 64))
        assert reader.kind == "openslide"
        assert reader.jpeg_tile(0) is None


def test_levels_between_pixels_are_openslide_s(write_jpeg_slide, picture) -> None:
    fast, slow = both(write_jpeg_slide([picture[:450, :602], shrunk(picture[:448, :600], 2)]))
    with fast, slow:
        assert fast.level_downsamples[1] != 2.0
        got = fast.read(256, 128, 200, 200, (90, 90))
        np.testing.assert_array_equal(got, slow.read(256, 128, 200, 200, (90, 90)))
        assert "lies between pixels of level 0" in fast.kind


def test_closing_waits_for_reads_and_ends_them(write_jpeg_slide, picture) -> None:
    reader = open_slide(write_jpeg_slide([picture]))
    reader.read(0, 0, 64, 64, (64, 64))
    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(reader.read, 0, 0, 600, 450, (600, 450)) for _ in range(60)]
        reads[0].result()
        reader.close()
        outcomes = [read.exception() for read in reads]
    assert outcomes[0] is None
    assert isinstance(outcomes[-1], ValueError)
    assert "is closed" in str(outcomes[-1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({259: 33005}, ""),
        ({262: 1}, "photometric 1"),
        ({277: 4}, "4 samples"),
        ({284: 2}, "photometric"),
        ({322: 60}, "tiles of 60 x 64"),
    ],
)
def test_what_is_not_eligible_says_why(
    write_jpeg_slide, picture, monkeypatch, change: dict, reason: str
) -> None:
    path = write_jpeg_slide([picture])
    number = tiff_directory.Directory.number
    monkeypatch.setattr(
        tiff_directory.Directory,
        "number",
        lambda self, tag, default: change.get(tag, number(self, tag, default)),
    )
    tiff = JpegTiff(path, "aperio", [(620, 470)])
    tiff.close()
    assert tiff.level(0) is None
    assert reason in tiff.levels[0]
    assert bool(tiff.levels[0]) == bool(reason)
