from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.models.encoders.card import Fit, Triple
from equipoise.models.encoders.cards import IMAGENET
from equipoise.models.encoders.protocol import Encoder
from equipoise.models.encoders.torch_encoder import Preparation, TorchEncoder

MEAN, STD = IMAGENET
AS_IT_IS: tuple[Triple, Triple] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
BOTH: tuple[Fit, Fit] = ("bilinear", "bicubic")


class Middle(nn.Module):
    """A network whose vectors are easy to foresee: means of the channels, times a weight."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([factor]))

    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3)) * self.factor


def encoder(network: nn.Module | None = None, **changes: Any) -> TorchEncoder:
    settings: dict[str, Any] = {"device": "cpu", "batch_size": 4} | changes
    return TorchEncoder(
        network or Middle(), Preparation(16, MEAN, STD, "bicubic"), 3, {"encoder": "x"}, **settings
    )


def tiles(count: int, px: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, px, px, 3), dtype=np.uint8)


def test_pixels_are_normalised_per_channel() -> None:
    batch = tiles(10)
    wanted = ((batch / 255 - MEAN) / STD).mean((1, 2))
    got = encoder()(batch)
    assert (got.dtype, got.shape) == (np.float16, (10, 3))
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-4)


def test_is_an_encoder() -> None:
    one: Encoder = encoder()
    assert (one.dim, one.batch_size, len(one.hash)) == (3, 4, 64)


def test_vectors_do_not_depend_on_the_batch() -> None:
    batch = tiles(10)
    one = encoder()
    together = one(batch)
    np.testing.assert_array_equal(together, one(batch))
    np.testing.assert_array_equal(together, encoder(batch_size=64)(batch))
    np.testing.assert_array_equal(together[::-1], one(batch[::-1]))
    np.testing.assert_array_equal(together, one(np.asfortranarray(batch)))
    frozen = batch.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(together, one(frozen))
    np.testing.assert_array_equal(frozen, batch)
    assert one(batch[:0]).shape == (0, 3)


def test_larger_tiles_are_resized_or_cut() -> None:
    batch = torch.from_numpy(tiles(2, 32))
    for fit in BOTH:
        resized = Preparation(16, *AS_IT_IS, fit)(batch)
        assert resized.shape == (2, 3, 16, 16)
        assert 0 <= resized.min() <= resized.max() <= 1
        by_four = batch.view(2, 16, 2, 16, 2, 3).float().mean((2, 4)).permute(0, 3, 1, 2) / 255
        assert (
            resized - by_four
        ).abs().mean() < 0.08  # antialiased: near the mean of the pixels it stands for
    cut = Preparation(16, *AS_IT_IS, "bicubic", crop_from=32)(batch)
    assert torch.equal(cut, batch[:, 8:24, 8:24].permute(0, 3, 1, 2) / 255)
    with pytest.raises(ValueError, match="16 px cannot be cut out of 12 px"):
        Preparation(16, MEAN, STD, "bicubic", crop_from=12)


def test_resized_before_the_border_is_cut_off() -> None:
    """A tile of the input's own side loses its border, too: only the central 90 % are seen, enlarged."""
    ramp = np.broadcast_to(np.linspace(0, 255, 224), (224, 224)).round().astype(np.uint8)
    batch = torch.from_numpy(np.repeat(ramp[None, ..., None], 3, axis=3))
    seen = Preparation(224, *AS_IT_IS, "bicubic", crop_from=248)(batch)
    assert seen.shape == (1, 3, 224, 224)
    # Pixel x of 224 lies at (x + 12 + 0.5) * 224 / 248 - 0.5 of the tile.
    centre = (np.arange(224) + 12.5) * 224 / 248 - 0.5
    np.testing.assert_allclose(seen[0, 0, 100].numpy(), centre / 223, atol=0.003)


def test_a_checkerboard_resizes_to_grey() -> None:
    """Without antialiasing every second pixel would be left, all of one colour."""
    y, x = np.mgrid[:64, :64]
    board = np.repeat((255 * ((x + y) % 2))[..., None], 3, axis=2).astype(np.uint8)[None]
    resized = Preparation(16, *AS_IT_IS, "bilinear")(torch.from_numpy(board))
    assert (resized - 0.5).abs().max() < 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"network": Middle(2.0)},
        {"precision": "float16"},
        {"on_cpu": "bfloat16"},
    ],
)
def test_hash_tells_what_decides_the_vectors(change: dict[str, Any]) -> None:
    assert encoder(**change).hash != encoder().hash


def test_hash_forgets_how_it_was_run() -> None:
    assert encoder(batch_size=7, device="auto").hash == encoder().hash
    other = TorchEncoder(Middle(), Preparation(16, MEAN, STD, "bicubic", 24), 3, {"encoder": "x"})
    assert other.hash != encoder().hash


def test_mixed_precision_on_request() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    exact, rounded = encoder(network)(tiles(4)), encoder(network, on_cpu="bfloat16")(tiles(4))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(exact, rounded, atol=0.05)


def test_numbers_beyond_float16_are_an_error() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        encoder(Middle(1e9))(tiles(1))


@pytest.mark.parametrize("wrong", [np.zeros((1, 16, 16, 3), np.float32), np.zeros((16, 16, 3), np.uint8)])
def test_wrong_input_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[B, H, W, 3\]"):
        encoder()(wrong)


def test_a_network_of_another_width_is_noticed() -> None:
    with pytest.raises(ValueError, match=r"gave \[2, 768\] for 2 tiles of dim 3"):
        encoder(nn.Flatten())(tiles(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_and_cpu_agree() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    on_cpu = encoder(network)(tiles(9))
    on_gpu = encoder(network, device="cuda", precision="float16")(tiles(9))
    np.testing.assert_allclose(on_cpu, on_gpu, atol=0.02)
