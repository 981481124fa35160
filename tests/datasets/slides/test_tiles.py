import numpy as np
import pytest

from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import SlideReader, open_slide
from equipoise.datasets.slides.tiles import read_block, tile_blocks


def test_tiles_are_the_slide_at_their_corners(write_slide, noise) -> None:
    plan = TilePlan(np.array([0, 64, 7], np.int32), np.array([0, 0, 300], np.int32), 64.0, 64, 0.5)
    with open_slide(write_slide([noise])) as reader:
        block = read_block(reader, plan, slice(1, 3))
    assert block.index.tolist() == [1, 2]
    np.testing.assert_array_equal(block.pixels, [noise[:64, 64:128], noise[300:364, 7:71]])
    assert not block.bad


def test_an_unreadable_tile_is_left_out_and_reported(write_slide, noise, monkeypatch) -> None:
    plan = TilePlan(np.arange(4, dtype=np.int32) * 64, np.zeros(4, np.int32), 64.0, 64, 0.5)
    read = SlideReader.read

    def failing(self: SlideReader, x0: int, y0: int, *rest: object) -> np.ndarray:
        if x0 == 64:
            raise SlideProblem("unreadable", "premature end", where="x=64")
        return read(self, x0, y0, *rest)

    monkeypatch.setattr(SlideReader, "read", failing)
    with open_slide(write_slide([noise])) as reader:
        block = read_block(reader, plan, slice(0, 4))
    assert block.index.tolist() == [0, 2, 3]
    assert block.bad == [(1, "premature end; at x=64")]
    for pixels, x in zip(block.pixels, (0, 128, 192), strict=True):
        np.testing.assert_array_equal(pixels, noise[:64, x : x + 64])


def a_grid(columns: int, rows: int, side: float, px: int) -> TilePlan:
    y, x = (np.floor(grid.ravel() * side).astype(np.int32) for grid in np.mgrid[:rows, :columns])
    return TilePlan(x, y, side, px, 0.5)


@pytest.mark.parametrize("side", [32.0, 48.0, 33.7, 64.0])
def test_blocks_are_squares_that_cover_a_plan(write_jpeg_slide, picture, side: float) -> None:
    plan = a_grid(int(620 / side), int(470 / side), side, 32)
    with open_slide(write_jpeg_slide([picture])) as reader, open_slide(reader.path, fast=False) as slow:
        blocks = tile_blocks(reader, plan)
        got = [read_block(reader, plan, places) for places in blocks]
        assert len(got) > 0
        for block, places in zip(got, blocks, strict=True):
            assert block.index.tolist() == places.tolist()
            expected = read_block(slow, plan, places)
            np.testing.assert_array_equal(block.pixels, expected.pixels)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(plan)))
    corners = [(plan.y[places].min(), plan.x[places].min()) for places in blocks]
    assert corners == sorted(corners)
    for places in blocks:
        assert np.ptp(plan.x[places]) < 16 * side
        assert np.ptp(plan.y[places]) < 16 * side


def test_blocks_fall_on_the_borders_of_jpeg_tiles(write_jpeg_slide, picture) -> None:
    plan = a_grid(12, 9, 48.0, 48)  # 48 px and 64 px meet every 192 px: four tiles, or eight
    with open_slide(write_jpeg_slide([picture])) as reader:
        corners = {
            int(v)
            for places in tile_blocks(reader, plan)
            for v in (plan.x[places].min(), plan.y[places].min())
        }
    assert all(corner % 192 == 0 for corner in corners)


def test_large_tiles_make_small_blocks(write_jpeg_slide, picture) -> None:
    plan = TilePlan(np.zeros(1, np.int32), np.zeros(1, np.int32), 2048.0, 2048, 0.5)
    with open_slide(write_jpeg_slide([picture])) as reader:
        assert len(tile_blocks(reader, plan)) == 1
    wide = a_grid(8, 1, 2048.0, 2048)
    with open_slide(write_jpeg_slide([picture])) as reader:
        assert len(tile_blocks(reader, wide)) == 8  # 12.6 MB each


def test_other_slides_are_read_in_short_runs(write_slide, noise) -> None:
    plan = a_grid(9, 7, 64.0, 64)
    with open_slide(write_slide([noise])) as reader:
        assert [len(places) for places in tile_blocks(reader, plan)] == [16, 16, 16, 15]
