"""Prefetching of tiles, batches, and slides with unreadable tiles."""

from collections.abc import Iterator

import numpy as np
import pytest

from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.tiles import TileBlock, drop_unreadable, full_batches, prefetch_blocks


def a_plan(n: int) -> TilePlan:
    return TilePlan(np.zeros(n, np.int32), np.zeros(n, np.int32), 4.0, 4, 0.5)


def blocks(sizes: list[int]) -> Iterator[TileBlock]:
    """Tiles whose pixels hold their own index."""
    start = 0
    for n in sizes:
        index = np.arange(start, start + n)
        yield TileBlock(index, np.broadcast_to(index[:, None, None, None], (n, 4, 4, 3)).astype(np.uint8))
        start += n


@pytest.mark.parametrize("sizes", [[16, 16, 8], [1] * 40, [40], [3, 0, 30, 7]])
def test_batches_do_not_depend_on_blocks(sizes: list[int]) -> None:
    got = [(index.copy(), pixels.copy()) for index, pixels in full_batches(blocks(sizes), 12, 4)]
    assert [len(index) for index, _ in got] == [12, 12, 12, 4]
    np.testing.assert_array_equal(np.concatenate([index for index, _ in got]), np.arange(40))
    np.testing.assert_array_equal(np.concatenate([pixels for _, pixels in got])[:, 2, 1, 0], np.arange(40))


def test_reading_ahead_is_bounded_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def read(reader: object, plan: TilePlan, indices: np.ndarray, resample: str) -> TileBlock:
        begun.append(int(indices[0]))
        return TileBlock(indices, np.zeros((0, 4, 4, 3), np.uint8))

    def runs(reader: object, plan: TilePlan) -> list[np.ndarray]:
        return [np.arange(at, at + 16) for at in range(0, len(plan), 16)]

    monkeypatch.setattr("equipoise.datasets.slides.tiles.read_block", read)
    monkeypatch.setattr("equipoise.datasets.slides.tiles.tile_blocks", runs)
    starts = []
    for block in prefetch_blocks(None, a_plan(160), "area", readers=2, ahead=3):
        starts.append(int(block.index[0]))
        assert len(begun) <= len(starts) + 3
    assert starts == list(range(0, 160, 16))


@pytest.mark.parametrize(
    ("share", "bad", "gives_up"),
    [(0.05, 5, False), (0.05, 6, True), (0.0, 1, True), (0.99, 100, True), (0.0, 0, False)],
)
def test_a_slide_is_given_up_when_too_much_of_it_is_unreadable(
    share: float, bad: int, gives_up: bool
) -> None:
    block = TileBlock(
        np.arange(100 - bad), np.zeros((100 - bad, 4, 4, 3), np.uint8), [(at, "torn") for at in range(bad)]
    )
    collected: list[tuple[int, str]] = []
    if gives_up:
        with pytest.raises(
            SlideProblem, match=f"more than {share:.1%} of 100 tiles cannot be read, the first: torn"
        ):
            list(drop_unreadable([block], collected, share, 100))
    else:
        assert list(drop_unreadable([block], collected, share, 100)) == [block]
    assert len(collected) == bad
