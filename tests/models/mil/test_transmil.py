"""TransMIL: squaring, position encoding, one bag at a time."""

from __future__ import annotations

import pytest
import torch

from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.entries import TransmilParams
from equipoise.models.mil.transmil import PyramidPositions, TransMIL, squared


@pytest.mark.parametrize(("count", "total"), [(1, 1), (2, 4), (3, 4), (4, 4), (5, 9), (10, 16), (17, 25)])
def test_squaring_repeats_the_first_tokens(count: int, total: int) -> None:
    tokens = torch.arange(float(count))[:, None]
    assert squared(tokens)[:, 0].tolist() == [*range(count), *range(total - count)]


@torch.no_grad()
def test_positions_are_the_sum_of_three_convolutions_and_the_tokens() -> None:
    layer, tokens = PyramidPositions(6), torch.randn(25, 6, generator=torch.Generator().manual_seed(0))
    grid = tokens.T.reshape(1, 6, 5, 5)
    expected = grid + layer.conv7(grid) + layer.conv5(grid) + layer.conv3(grid)
    torch.testing.assert_close(layer(tokens), expected[0].flatten(1).T)


@torch.no_grad()
def test_latents_of_a_case_are_bit_for_bit_the_same_in_any_batch(make, bags, batch_of) -> None:
    model, several = make("transmil").eval(), bags(30, 9, 1)
    together = model.latents(batch_of(several, padding=3, fill=7.0))
    assert len(several) > 0
    for i, bag in enumerate(several):
        for name, latent in model.latents(batch_of([bag])).items():
            assert torch.equal(together[name][i], latent[0])


@torch.no_grad()
def test_places_on_the_grid_matter(make, bags, batch_of) -> None:
    model, (bag,) = make("transmil").eval(), bags(16)
    assert not torch.allclose(model(batch_of([bag]))["MSI"], model(batch_of([bag.flip(0)]))["MSI"], atol=1e-4)


def test_published_sizes() -> None:
    model = TransMIL(TransmilParams(), CaseShape(1024), [TaskHead("MSI", "binary", 2)])
    layer = 2 * 512 + 3 * 512 * 512 + 8 * 33 + 512 * 513
    positions = 512 * (49 + 25 + 9 + 1)
    expected = 1025 * 512 + 512 + 2 * layer + positions + 2 * 512
    assert sum(p.numel() for p in model.shared_parameters()) == expected
    assert sum(p.numel() for p in model.task_parameters("MSI")) == 513 * 2


def test_heads_must_divide_dim() -> None:
    with pytest.raises(ValueError, match="dim 100 is not divisible by heads 8"):
        TransmilParams(dim=100)
