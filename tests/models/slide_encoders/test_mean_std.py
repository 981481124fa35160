"""Statistics over tiles: the numbers, their order, their identity, what is refused."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from equipoise.models.slide_encoders.entries import MeanStdParams
from equipoise.models.slide_encoders.mean_std import MeanStd
from equipoise.models.slide_encoders.protocol import encode_slide


def corners(n: int) -> np.ndarray:
    return np.zeros((n, 2), np.float32)


def encode(params: MeanStdParams, bag: np.ndarray) -> np.ndarray:
    return encode_slide(MeanStd(params), bag, corners(len(bag)), 112.0)


def test_the_numbers() -> None:
    bag = np.array([[0, 10], [2, 10], [4, 40]], np.float16)
    encoder = MeanStd(MeanStdParams(quantiles=(0.0, 0.5, 0.75)))
    vector = encode_slide(encoder, bag, corners(3), 112.0)
    assert (vector.dtype, vector.shape) == (np.float16, (10,))
    assert encoder.dim(2) == 10
    expected = [2, 20, np.sqrt(8 / 3), np.sqrt(200), 0, 10, 2, 10, 3, 25]
    np.testing.assert_allclose(vector, expected, rtol=1e-3)


def test_one_tile_has_no_spread() -> None:
    vector = encode(MeanStdParams(), np.full((1, 3), 7, np.float16))
    assert vector.tolist() == [7] * 3 + [0] * 3 + [7] * 9


def test_the_widest_numbers_stay_finite() -> None:
    """Sums in float16 would overflow at 65504; statistics of float16 numbers never leave their range."""
    bag = np.full((5000, 70), 60000, np.float16)
    bag[::2] *= -1
    vector = encode(MeanStdParams(), bag)
    assert np.isfinite(vector).all()
    np.testing.assert_allclose(vector[:70], 0, atol=1)
    np.testing.assert_allclose(vector[70:140], 60000, rtol=1e-3)


@given(st.integers(1, 40), st.integers(1, 130), st.integers(0, 1000))
def test_neither_order_nor_blocks_of_columns_matter(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bag = rng.normal(size=(n, d)).astype(np.float16)
    vector = encode(MeanStdParams(), bag).reshape(5, d)
    shuffled = encode(MeanStdParams(), bag[rng.permutation(n)]).reshape(5, d)
    np.testing.assert_allclose(shuffled.astype(float), vector.astype(float), atol=1e-3)
    alone = encode(MeanStdParams(), np.ascontiguousarray(bag[:, -1:]))
    np.testing.assert_array_equal(alone, vector[:, -1])


def test_identity_follows_the_parameters() -> None:
    hashes = {MeanStd(MeanStdParams(quantiles=q)).fingerprint for q in ((), (0.5,), (0.1, 0.5))}
    assert len(hashes) == 3
    assert MeanStd(MeanStdParams()).fingerprint == MeanStd(MeanStdParams()).fingerprint
    assert encode(MeanStdParams(quantiles=()), np.ones((2, 4), np.float16)).shape == (8,)


def test_stores_of_earlier_releases_are_still_found() -> None:
    wanted = hashlib.sha256(b"mean_std 1 [0.1, 0.5, 0.9]").hexdigest()
    assert MeanStd(MeanStdParams()).fingerprint == wanted


def test_what_is_refused() -> None:
    for wrong in ((0.5, 0.1), (0.5, 0.5), (1.5,)):
        with pytest.raises(ValidationError):
            MeanStdParams(quantiles=wrong)
