import math

import numpy as np
import pytest

from equipoise.datasets.slides.resample import area_resample, source_size


def footprint(n_out: int, n_in: int, scale: float) -> np.ndarray:
    """``[n_out, n_in]``: share of every source pixel in every output pixel."""
    edges = np.arange(n_out + 1)[:, None] * scale
    covered = np.clip(
        np.minimum(edges[1:], np.arange(1, n_in + 1)) - np.maximum(edges[:-1], np.arange(n_in)), 0, None
    )
    return covered / scale


@pytest.mark.parametrize("scale", [1.0, 1.13, 0.5 / 0.2527, 2.0, 3.7])
def test_is_the_mean_over_the_exact_footprint(scale: float) -> None:
    out_px = (50, 37)
    width, height = source_size(out_px, (scale, scale))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.einsum(
        "ij,jkc,lk->ilc", footprint(37, height, scale), image.astype(float), footprint(50, width, scale)
    )
    got = area_resample(image, out_px, (scale, scale))
    assert got.shape == (37, 50, 3)
    assert np.abs(got - expected).max() < 0.51  # rounding to 8 bit, nothing else


def test_scale_one_is_a_copy() -> None:
    image = np.random.default_rng(1).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(area_resample(image, (7, 9), (1.0, 1.0)), image[:, :7])


def test_rounding_of_floats_costs_no_extra_pixel() -> None:
    assert source_size((224, 224), (0.5 / 0.25 + 1e-12, 2.0)) == (448, 448)
    assert source_size((224, 1), (1.9786, 1.5)) == (math.ceil(224 * 1.9786), 2)


def test_refuses_to_enlarge() -> None:
    with pytest.raises(ValueError, match="only makes images smaller"):
        area_resample(np.zeros((4, 4, 3), np.uint8), (8, 8), (0.5, 0.5))
