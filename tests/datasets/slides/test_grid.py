import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.datasets.slides.grid import grid_corners, plan_tiles
from equipoise.datasets.slides.mpp import Sampling, choose_sampling
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.tissue import Tissue


def a_tissue(mask: np.ndarray, dimensions: tuple[int, int]) -> Tissue:
    return Tissue(mask, dimensions, 5, np.zeros((*mask.shape, 3), np.uint8), 8.0)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 9000),
    height=st.integers(1, 9000),
    mpp=st.floats(0.1, 1.0),
    target=st.floats(0.5, 5.0),
    tile_px=st.integers(32, 512),
)
def test_tiles_stay_inside_cover_and_do_not_drift(
    width: int, height: int, mpp: float, target: float, tile_px: int
) -> None:
    levels = [(width, height), (max(1, width // 2), max(1, height // 2))]
    downsamples = [1.0, (width / levels[1][0] + height / levels[1][1]) / 2]
    try:
        sampling = choose_sampling(mpp, downsamples, target)
    except SlideProblem:
        return
    columns, rows = grid_corners((width, height), sampling, levels[sampling.level], tile_px)
    side = tile_px * sampling.downsample
    for corners, full in ((columns, width), (rows, height)):
        assert (corners >= 0).all()
        assert (corners + side <= full + 1e-6).all()
        step = sampling.downsample / sampling.scale
        ideal = np.arange(len(corners)) * side
        assert (corners <= ideal + 1e-6).all()
        assert (corners > ideal - step - 1).all()  # less than a pixel of the level, and one of level 0


def test_corners_fall_on_whole_pixels_of_the_level() -> None:
    sampling = Sampling(level=1, downsample=10.0, scale=2.5, mpp=2.5, native=False)
    columns, _ = grid_corners((4096, 4096), sampling, (1024, 1024), 33)
    assert (columns % 4 == 0).all()
    np.testing.assert_array_equal(columns, np.floor(np.arange(len(columns)) * 33 * 2.5).astype(int) * 4)


def test_keeps_tiles_with_enough_tissue_row_by_row() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:20, 0:15] = True  # one mask pixel is 10 px: tiles of 100 px
    plan = plan_tiles(a_tissue(mask, (400, 400)), choose_sampling(0.5, [1.0], 0.5), [(400, 400)], 100, 0.25)
    assert list(zip(plan.x.tolist(), plan.y.tolist(), strict=True)) == [(0, 100), (100, 100)]
    np.testing.assert_allclose(plan.share, [1.0, 0.5])
    assert (plan.x.dtype, plan.y.dtype, plan.side, plan.px, plan.mpp) == (np.int32, np.int32, 100.0, 100, 0.5)
    strict = plan_tiles(a_tissue(mask, (400, 400)), choose_sampling(0.5, [1.0], 0.5), [(400, 400)], 100, 0.6)
    assert len(strict) == 1


@pytest.mark.parametrize(
    ("share", "size", "min_tiles", "status", "says"),
    [
        (0.0, 400, 1, "no_tissue", "nothing is more saturated"),
        (0.01, 400, 1, "no_tissue", "no tile holds 25%"),
        (1.0, 90, 1, "too_few_tiles", "90 x 90 px, one tile needs 100 x 100"),
        (1.0, 250, 5, "too_few_tiles", "4 tiles with tissue, the study asks for 5"),
    ],
)
def test_slides_with_nothing_to_give(share: float, size: int, min_tiles: int, status: str, says: str) -> None:
    mask = np.zeros((100, 100), bool)
    mask[: round(share * 100)] = True
    if share == 0.01:
        mask[:, 20:] = False
    with pytest.raises(SlideProblem) as caught:
        plan_tiles(
            a_tissue(mask, (size, size)),
            choose_sampling(0.5, [1.0], 0.5),
            [(size, size)],
            100,
            0.25,
            min_tiles,
        )
    assert caught.value.status == status
    assert says in caught.value.what


def test_blocks_are_consecutive_and_complete() -> None:
    mask = np.ones((10, 10), bool)
    plan = plan_tiles(a_tissue(mask, (700, 700)), choose_sampling(0.5, [1.0], 0.5), [(700, 700)], 100, 0.25)
    runs = plan.blocks(10)
    assert [run.stop - run.start for run in runs] == [10, 10, 10, 10, 9]
    assert [run.start for run in runs[1:]] == [run.stop for run in runs[:-1]]


def test_corners_fall_on_pixels_of_the_reduced_level() -> None:
    mask = np.ones((10, 10), bool)
    sampling = choose_sampling(0.2527, [1.0], 0.5, reducible=(0,))
    plan = plan_tiles(a_tissue(mask, (1001, 777)), sampling, [(1001, 777)], 33, 0.25)
    assert (plan.side, plan.mpp) == (66.0, 0.5054)
    assert not (plan.x % 2).any()
    assert (plan.x + plan.side <= 1000).all()  # the last column has no partner to be averaged with
