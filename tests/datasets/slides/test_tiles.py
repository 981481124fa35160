import numpy as np

from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import SlideReader, open_slide
from equipoise.datasets.slides.tiles import read_block


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
