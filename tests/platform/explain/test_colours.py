"""Colour scales: ends, middle, evenness, and colour-blind readers."""

import numpy as np
import pytest
from tests.platform.explain.conftest import made_map

from equipoise.platform.explain.colours import diverging_table, oklab_to_rgb, scale_of, sequential_table


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB to OKLab by the matrices of Ottosson (2020), the way opposite to the product's."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    m1 = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                   [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
    m2 = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                   [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
    return np.cbrt(linear @ m1.T) @ m2.T


#: Linear RGB as protanopes and deuteranopes see it: Viénot, Brettel, Mollon (1999), Color Res. Appl. 24:243.
COLOUR_BLIND = {
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


def test_primaries_have_their_published_coordinates() -> None:
    published = [[0.62796, 0.22486, 0.12585], [0.86644, -0.23389, 0.17950], [0.45201, -0.03246, -0.31153]]
    np.testing.assert_array_equal(oklab_to_rgb(np.array(published)), np.diag([255, 255, 255]))


@pytest.mark.parametrize("table", [diverging_table()[:128], diverging_table()[128:], sequential_table()])
def test_steps_are_even_and_lightness_tells_the_order(table: np.ndarray) -> None:
    lab = oklab(table[:: max(1, len(table) // 16)].astype(float))
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.max() < 1.15 * steps.min()
    lightness = np.diff(lab[:, 0])
    assert (lightness < 0).all() or (lightness > 0).all()


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_ends_differ_for_colour_blind_readers(kind: str) -> None:
    ends = diverging_table()[[0, 128, -1]] / 255
    linear = np.where(ends <= 0.04045, ends / 12.92, ((ends + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(COLOUR_BLIND[kind]).T, 0, 1)
    lab = oklab(255 * np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(lab[one] - lab[other]) > 0.2  # some ten just noticeable differences


def test_scores_of_both_signs_have_zero_in_the_middle() -> None:
    scale = scale_of(made_map(score=np.linspace(-1, 3, 50), x=np.arange(50), y=np.zeros(50, int)))
    assert (scale.low, scale.high, scale.diverging) == (-3, 3, True)
    assert scale.position(np.array([-3.0, 0.0, 3.0])).tolist() == [0, 0.5, 1]
    zero = scale.rgb(np.array([0.0]))[0].astype(int)
    assert np.ptp(zero) <= 6  # grey


def test_one_tile_does_not_wash_out_the_others() -> None:
    score = np.append(np.linspace(0, 1, 400), 100)
    scale = scale_of(made_map(score=score, x=np.arange(401), y=np.zeros(401, int)))
    assert 0.98 < scale.high < 1
    assert (scale.low, scale.clipped_low, scale.clipped_high) == (0, False, True)


def test_one_tile_among_few_does_not_either() -> None:
    scale = scale_of(
        made_map(score=np.append(np.linspace(-0.1, 0.1, 50), 0.8), x=np.arange(51), y=np.zeros(51, int))
    )
    assert (scale.low, scale.high, scale.clipped_low, scale.clipped_high) == (
        pytest.approx(-0.1),
        pytest.approx(0.1),
        False,
        True,
    )


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_equal_scores_have_a_scale(value: float) -> None:
    scale = scale_of(made_map(score=np.full(4, value), x=np.arange(4), y=np.zeros(4, int)))
    assert scale.low < scale.high
    assert scale.low <= value <= scale.high
