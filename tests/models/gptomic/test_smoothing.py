import json

import numpy as np
import pytest
import torch

from equipoise.models.gptomic.mixup import recovery
from equipoise.models.gptomic.params import AdapterParams
from equipoise.models.gptomic.smoothing import (
    SmoothingNetwork,
    fraction_loss,
    load_adapter,
    train_adapter,
)

TYPES = ("a", "b", "c")
MADE_FOR = {"encoder": "pca", "encoder_fingerprint": "ab" * 32}


@pytest.fixture(scope="module")
def mixtures() -> tuple[np.ndarray, np.ndarray]:
    """Vectors that are linear in the fractions, far from the origin and in small units."""
    rng = np.random.default_rng(0)
    fractions = rng.dirichlet(np.ones(3), 1200).astype(np.float32)
    vectors = fractions @ rng.normal(size=(3, 10)) * 0.01 + 5 + rng.normal(0, 1e-4, (1200, 10))
    return vectors.astype(np.float32), fractions


def train(mixtures, seed=0, **params):
    settings = AdapterParams(**{"dim": 32, "epochs": 30, "batch": 64, **params})
    return train_adapter(*mixtures, TYPES, settings, **MADE_FOR, seed=seed)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"loss": "cross_entropy"},
        {"batch_norm": True},
        {"dropout": 0.1},
        {"bottleneck": "variational"},
        {"layers": 1},
    ],
)
def test_fractions_are_learned_whatever_regularises(mixtures, params):
    adapter = train(mixtures, **params)
    predicted = adapter.fractions(mixtures[0])
    assert predicted.min() >= 0
    np.testing.assert_allclose(predicted.sum(axis=1), 1, atol=1e-5)
    assert recovery(predicted, mixtures[1]).r > 0.95
    assert adapter.moved > 0.05
    assert adapter.losses[-1] < adapter.losses[0]
    assert adapter(mixtures[0]).shape == (1200, 32)


def test_same_seed_same_weights_and_the_global_generator_is_left_alone(mixtures):
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first, again, other = (
        train(mixtures, seed, epochs=2, dropout=0.2)(mixtures[0][:5]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (torch.random.get_rng_state() == state).all()
    assert torch.get_num_threads() == threads


def test_adapted_vectors_are_what_the_classifier_reads(mixtures):
    adapter = train(mixtures, epochs=2, loss="cross_entropy")
    weight, bias = (parameter.detach().numpy() for parameter in adapter.network.classifier.parameters())
    logits = adapter(mixtures[0]) @ weight.T + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(adapter.fractions(mixtures[0]), expected, rtol=1e-4, atol=1e-6)


def test_the_encoder_s_vectors_may_stay(mixtures):
    alone, both = train(mixtures, epochs=2), train(mixtures, epochs=2, keep=True)
    vectors = both(mixtures[0])
    assert vectors.shape == (1200, both.dim) == (1200, 10 + 32)
    np.testing.assert_array_equal(vectors[:, 10:], alone(mixtures[0]))
    np.testing.assert_allclose(vectors[:, :10].mean(axis=0), 0, atol=1e-2)
    assert vectors[:, :10].std() == pytest.approx(1, abs=0.01)
    # One scale for all columns: their spreads keep their ratios.
    ratios = vectors[:, :10].std(axis=0) / mixtures[0].std(axis=0)
    assert ratios.max() / ratios.min() == pytest.approx(1, abs=0.01)
    np.testing.assert_array_equal(both.fractions(mixtures[0]), alone.fractions(mixtures[0]))


def test_a_training_that_cannot_move_says_so(mixtures):
    assert train(mixtures, epochs=1, lr=1e-9).moved < 1e-3


def test_losses_and_divergence_have_their_closed_forms():
    output = torch.tensor([[1.0, -2.0], [0.5, 0.5]], dtype=torch.float64)
    target = torch.tensor([[0.3, 0.7], [1.0, 0.0]], dtype=torch.float64)
    assert float(fraction_loss(output, target, "mse")) == pytest.approx(np.mean([0.49, 7.29, 0.25, 0.25]))
    expected = np.mean([np.log1p(np.exp(-3)) + 0.7 * 3, np.log(2)])
    assert float(fraction_loss(output, target, "cross_entropy")) == pytest.approx(expected)
    # Both are torch's own, whose soft targets mean the same.
    reference = torch.nn.functional.cross_entropy(output, target)
    assert float(fraction_loss(output, target, "cross_entropy")) == pytest.approx(float(reference))

    network = SmoothingNetwork(4, 2, AdapterParams(bottleneck="variational", dim=6)).eval()
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    mean, divergence = network.adapt(x)
    variance = network.log_variance(network.layers(x)).exp()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
    ).sum(dim=1)
    torch.testing.assert_close(divergence, kl)
    drawn = torch.stack([network.train().adapt(x)[0] for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(drawn.var(0), variance, atol=0, rtol=0.15)


def test_folder_round_trip_and_what_does_not_fit(mixtures, tmp_path):
    adapter = train(mixtures, epochs=2, batch_norm=True)
    adapter.save(tmp_path / "a")
    again = load_adapter(tmp_path / "a")
    np.testing.assert_array_equal(again(mixtures[0]), adapter(mixtures[0]))
    assert (again.types, again.params, again.losses) == (adapter.types, adapter.params, adapter.losses)
    gaps = mixtures[0][:3].copy()
    gaps[1, 2] = np.nan
    assert np.isnan(again(gaps)).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="takes vectors of 10 numbers"):
        again(np.zeros((2, 9)))

    again.require_encoder("pca", MADE_FOR["encoder_fingerprint"])
    with pytest.raises(ValueError, match="not for one with other weights or parameters"):
        again.require_encoder("pca", "cd" * 32)
    with pytest.raises(ValueError, match="not for 'scgpt'"):
        again.require_encoder("scgpt", "cd" * 32)

    train(mixtures, seed=9, epochs=2, batch_norm=True).save(tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").replace(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_adapter(tmp_path / "a")
    config = tmp_path / "b" / "config.json"
    for change, match in (
        ({"inputs": 11}, "of another shape"),
        ({"format": "x"}, "not an adapter of this version"),
    ):
        text = config.read_text()
        config.write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(ValueError, match=match):
            load_adapter(tmp_path / "b")
        config.write_text(text)
    load_adapter(tmp_path / "b")


def test_rows_without_a_vector_are_left_out(mixtures):
    vectors = mixtures[0].copy()
    vectors[::2] = np.nan
    assert recovery(train((vectors, mixtures[1])).fractions(mixtures[0]), mixtures[1]).r > 0.9
    with pytest.raises(ValueError, match="fewer than two mixtures"):
        train((np.full_like(vectors, np.nan), mixtures[1]))
    with pytest.raises(ValueError, match="not finite"):
        train((mixtures[0], mixtures[1]), epochs=5, lr=1e25)
