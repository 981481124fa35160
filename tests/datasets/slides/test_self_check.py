from pathlib import Path

import numpy as np
import pytest

from equipoise.datasets.slides.jpeg_tiff import TILES, JpegTiff, self_check
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import SlideReader, open_slide


@pytest.fixture
def tiff(write_jpeg_slide, picture) -> JpegTiff:
    return JpegTiff(write_jpeg_slide([picture]), "aperio", [(620, 470)])


def decoded(tiff: JpegTiff, x: int, y: int, size: tuple[int, int]) -> np.ndarray:
    return tiff.windows(tiff.level(0), np.array([x]), np.array([y]), size)[0][0]


def test_three_equal_tiles_are_enough_and_always_the_same(tiff: JpegTiff) -> None:
    asked: list[list[tuple[int, int]]] = [[], []]
    assert len(asked) > 0
    for seen in asked:

        def reference(x: int, y: int, size: tuple[int, int], seen: list = seen) -> np.ndarray:
            seen.append((x, y))
            return decoded(tiff, x, y, size)

        assert self_check(tiff, tiff.level(0), 1.0, reference) == ""
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == TILES


def test_one_grey_level_in_one_pixel_is_a_difference(tiff: JpegTiff) -> None:
    def reference(x: int, y: int, size: tuple[int, int]) -> np.ndarray:
        pixels = decoded(tiff, x, y, size)
        pixels[3, 4, 1] ^= 1
        return pixels

    assert "differ from OpenSlide's by up to 1 in the tile at" in self_check(
        tiff, tiff.level(0), 1.0, reference
    )


def test_tiles_that_openslide_cannot_read_say_nothing(tiff: JpegTiff) -> None:
    calls = []

    def reference(x: int, y: int, size: tuple[int, int]) -> np.ndarray:
        calls.append(x)
        if len(calls) < 4:
            raise SlideProblem("unreadable", "torn")
        return decoded(tiff, x, y, size)

    assert self_check(tiff, tiff.level(0), 1.0, reference) == ""
    assert len(calls) == 3 + TILES

    def never(x: int, y: int, size: tuple[int, int]) -> np.ndarray:
        raise SlideProblem("unreadable", "torn")

    assert self_check(tiff, tiff.level(0), 1.0, never) == "no tile could be compared"


def test_a_slide_that_only_openslide_reads_is_left_to_it(tiff: JpegTiff) -> None:
    level = tiff.level(0)
    level.counts[:] //= 2  # strict decoding refuses all of it
    answer = self_check(tiff, level, 1.0, lambda x, y, size: np.zeros((size[1], size[0], 3), np.uint8))
    assert answer == "only OpenSlide reads its tiles (Premature end of JPEG file)"


def test_a_difference_hands_the_slide_to_openslide_with_the_reason(
    write_jpeg_slide, picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Path = write_jpeg_slide([picture])
    windows = JpegTiff.windows

    def wrong(self: JpegTiff, *rest: object) -> tuple:
        pixels, problems = windows(self, *rest)
        return pixels ^ 1, problems

    monkeypatch.setattr(JpegTiff, "windows", wrong)
    with open_slide(path) as reader, open_slide(path, fast=False) as slow:
        for resample in ("area", "dct"):
            got = reader.read(0, 0, 128, 128, (64, 64), resample)
            np.testing.assert_array_equal(got, slow.read(0, 0, 128, 128, (64, 64)))
        assert reader.kind.startswith(
            "openslide (level 0: pixels differ from OpenSlide's by up to 1 in the tile at x="
        )
        assert reader.sampling(1.0, "dct") == slow.sampling(1.0)


def test_checked_once_per_level(write_jpeg_slide, picture, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read_level = SlideReader._read_level
    monkeypatch.setattr(
        SlideReader, "_read_level", lambda self, *rest: calls.append(rest) or read_level(self, *rest)
    )
    with open_slide(write_jpeg_slide([picture])) as reader:
        for _ in range(3):
            reader.read(0, 0, 100, 100, (100, 100))
    assert len(calls) == TILES
