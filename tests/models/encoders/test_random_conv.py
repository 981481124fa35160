import numpy as np
import pytest
import torch
from torch.nn import functional

from equipoise.models.encoders.entries import RandomConvParams
from equipoise.models.encoders.random_conv import RandomConv, random_filters


@pytest.fixture(scope="module")
def encoder() -> RandomConv:
    return RandomConv()


def tiles(count: int, px: int = 96) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, px, px, 3), dtype=np.uint8)


def test_shape_and_type(encoder: RandomConv) -> None:
    vectors = encoder(tiles(3))
    assert (vectors.shape, vectors.dtype, encoder.dim) == ((3, 960), np.float16, 960)
    assert np.isfinite(vectors).all()
    assert encoder(tiles(0)).shape == (0, 960)
    assert encoder(tiles(1, 32)).shape == (1, 960)


def test_a_vector_depends_on_its_tile_alone(encoder: RandomConv) -> None:
    batch = tiles(4)
    together = encoder(batch)
    np.testing.assert_array_equal(
        together, np.concatenate([encoder(tile[None]) for tile in batch[::-1]])[::-1]
    )
    np.testing.assert_array_equal(together, RandomConv()(np.asfortranarray(batch)))


def test_threads_change_nothing(encoder: RandomConv) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(encoder(tiles(2, 224)))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*results)


def test_filters_are_orthonormal_and_on_a_grid() -> None:
    shapes = [(32, 3, 5, 5), (64, 32, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3)]
    stages = random_filters(0)
    assert [stage.shape for stage in stages] == shapes
    for stage in stages:
        rows = stage.reshape(len(stage), -1).astype(float)
        np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-4)
        np.testing.assert_array_equal(rows * 2**16, np.round(rows * 2**16))


def test_numbers_are_pinned(encoder: RandomConv) -> None:
    """A change here changes the features of every store: raise ``VERSION`` and pin anew."""
    assert encoder.hash.startswith("902ba27ef07d5647")


def test_equals_the_definition(encoder: RandomConv) -> None:
    tile = tiles(1)[0]
    x = (torch.from_numpy(tile).double().permute(2, 0, 1) / 255 - 0.7) / 0.2
    wanted = []
    for stage in random_filters(0):
        kernel = torch.from_numpy(stage).double()
        outputs, _, size, _ = kernel.shape
        columns = functional.unfold(x[None], size, padding=size // 2)[0]  # convolution as a matrix product
        x = (kernel.view(outputs, -1) @ columns).clamp(min=0).view(outputs, *x.shape[1:])
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
        flat = x.flatten(1)
        wanted += [flat.mean(1), flat.var(1, unbiased=False).sqrt()]
    np.testing.assert_allclose(encoder(tile[None])[0], torch.cat(wanted), rtol=2e-3, atol=1e-5)


def test_seeds_do_not_mix(encoder: RandomConv) -> None:
    other = RandomConv(RandomConvParams(seed=1))
    assert other.hash != encoder.hash
    assert not np.allclose(other(tiles(1)), encoder(tiles(1)), atol=0.01)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.zeros((1, 96, 96, 3), np.float32), "uint8"),
        (np.zeros((96, 96, 3), np.uint8), r"\[B, H, W, 3\]"),
        (np.zeros((1, 24, 24, 3), np.uint8), "at least 32 px"),
    ],
)
def test_wrong_input_is_refused(encoder: RandomConv, wrong: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encoder(wrong)
