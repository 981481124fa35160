"""Losses on embeddings: the published formula against torch's own, the measured identity, gradients of shares."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise.models.text.losses import KL_FACTOR, Kind, cosine, distances, kl, loss_of_logits


def units(n: int, d: int, seed: int) -> Tensor:
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_kl_is_the_published_formula(temperature: float) -> None:
    z, y = units(5, 256, 0), units(5, 256, 1)
    expected = torch.nn.functional.kl_div(
        (z / temperature).log_softmax(1), (y / temperature).softmax(1), reduction="none"
    ).sum(1)
    torch.testing.assert_close(kl(z, y, temperature), 10 * temperature**2 * expected)


def test_kl_is_a_cosine_loss_on_another_scale() -> None:
    """modaltune: 256 KL / (1 - cos) at T = 1 is .996 with standard deviation .007 on random unit vectors."""
    z, y = units(500, 256, 2), units(500, 256, 3)
    ratio = (256 * kl(z, y) / KL_FACTOR / cosine(z, y)).numpy()
    assert abs(ratio.mean() - 1) < 0.05
    assert ratio.std() < 0.02
    assert (256 * kl(z, y, 0.02) / KL_FACTOR / cosine(z, y)).mean() < 0.9  # T matters below .1


@pytest.mark.parametrize(("kind", "one"), [("kl", kl), ("cosine", cosine)])
def test_losses_of_logits_are_those_of_embeddings(kind: Kind, one: Callable[..., Tensor]) -> None:
    z, bank = units(6, 64, 4), units(3, 64, 5)
    label = torch.tensor([0, 1, 2, 2, 1, 0])
    logits = -distances(z, bank, kind) / 0.1
    shares = torch.nn.functional.one_hot(label, 3).double()
    torch.testing.assert_close(loss_of_logits(logits, shares, kind, 0.1, 64), one(z, bank[label]))


def test_gradient_of_shares_is_that_of_the_interpolated_target() -> None:
    z, bank, shares = units(4, 32, 6).requires_grad_(), units(3, 32, 7), torch.rand(4, 3, dtype=torch.float64)
    shares = shares / shares.sum(1, keepdim=True)
    mean = loss_of_logits(-distances(z, bank, "kl", 0.5) / 0.1, shares, "kl", 0.1, 32).sum()
    (got,) = torch.autograd.grad(mean, z)
    mixture = shares @ (bank / 0.5).softmax(1)
    log_z = (z / 0.5).log_softmax(1)
    loss = 10 * 0.25 * (mixture * (mixture.log() - log_z)).sum()
    (expected,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(got, expected)


def test_labels_that_training_lacks_are_in_no_denominator() -> None:
    z, bank, label = units(5, 16, 8).requires_grad_(), units(4, 16, 9), torch.tensor([3, 0, 1, 1, 0])
    shares = torch.nn.functional.one_hot(label, 4)
    logits = -distances(z, bank, "infonce") / 0.1
    got = loss_of_logits(logits, shares, "infonce", 0.1, 16, (True, True, False, True))
    kept = torch.tensor([0, 1, 3])
    few = torch.tensor([2, 0, 1, 1, 0])
    torch.testing.assert_close(got, torch.nn.functional.cross_entropy(logits[:, kept], few, reduction="none"))
    (gradient,) = torch.autograd.grad(got.sum(), z)
    assert torch.isfinite(gradient).all()
    # A validation patient may have a label that training lacks: it stands beside those that training has.
    late = loss_of_logits(
        logits,
        torch.nn.functional.one_hot(torch.tensor([2] * 5), 4),
        "infonce",
        0.1,
        16,
        (True, True, False, False),
    )
    beside = torch.nn.functional.cross_entropy(logits[:, :3], torch.tensor([2] * 5), reduction="none")
    torch.testing.assert_close(late, beside)


def test_infonce_is_cross_entropy_over_the_bank() -> None:
    z, bank, label = units(5, 16, 8), units(4, 16, 9), torch.tensor([3, 0, 1, 2, 2])
    logits = -distances(z, bank, "infonce") / 0.1
    got = loss_of_logits(logits, torch.nn.functional.one_hot(label, 4), "infonce", 0.1, 16)
    torch.testing.assert_close(
        got, torch.nn.functional.cross_entropy(z @ bank.T / 0.1, label, reduction="none")
    )
    np.testing.assert_allclose(logits.softmax(1).sum(1), 1)
