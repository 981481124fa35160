import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import dirichlet, kstest

from equipoise.models.gptomic.mixup import mix, mixed_labels, mixture_weights, recovery
from equipoise.models.gptomic.params import MixupParams

LABELS = np.array([0] * 50 + [1] * 5 + [3] * 10)
VALUES = csr_matrix(np.random.default_rng(0).poisson(2.0, (65, 20)).astype(np.float32))


@pytest.mark.parametrize("mixup", ["none", "two_cells", "dirichlet"])
@pytest.mark.parametrize("draw", ["types", "cells"])
def test_weights_and_targets_are_shares(mixup, draw):
    params = MixupParams(mixup=mixup, draw=draw, samples=3000)
    weights = mixture_weights(LABELS, params, 1)
    targets = mixed_labels(LABELS, weights, 4)
    assert weights.shape == (3000, 65)
    assert weights.data.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1).A1, 1, atol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-5)
    expected = [1 / 3, 1 / 3, 0, 1 / 3] if draw == "types" else [50 / 65, 5 / 65, 0, 10 / 65]
    np.testing.assert_allclose(targets.mean(axis=0), expected, atol=0.04)
    np.testing.assert_array_equal(weights.toarray(), mixture_weights(LABELS, params, 1).toarray())
    assert (weights.toarray() != mixture_weights(LABELS, params, 2).toarray()).any()


def test_no_mixup_returns_the_cell():
    weights = mixture_weights(LABELS, MixupParams(mixup="none", samples=200), 0)
    cells = weights.indices
    assert len(cells) == 200
    assert (weights.data == 1).all()
    np.testing.assert_allclose(mix(VALUES, weights), VALUES.toarray()[cells], rtol=1e-6)
    assert (mixed_labels(LABELS, weights, 4).argmax(axis=1) == LABELS[cells]).all()


def test_two_cells_have_uniform_weights():
    labels = np.zeros(5000, int)  # so many cells that a cell is hardly ever mixed with itself
    weights = mixture_weights(labels, MixupParams(mixup="two_cells", draw="cells", samples=4000), 3)
    largest = weights.max(axis=1).toarray().ravel()
    assert kstest(largest[largest < 1], "uniform", (0.5, 0.5)).pvalue > 1e-3
    assert (np.diff(weights.indptr) <= 2).all()


@pytest.mark.parametrize(("cells", "concentration"), [(2, 1.0), (5, 0.3), (100, 5.0), (5, 0.01)])
def test_dirichlet_has_its_moments(cells, concentration):
    params = MixupParams(cells=(cells,), concentrations=(concentration,), draw="cells", samples=3000)
    weights = mixture_weights(np.zeros(200_000, int), params, 5)
    assert np.isfinite(weights.data).all()
    # E Σ w² = k (mean² + variance) of Dirichlet's closed form.
    moments = dirichlet(np.full(cells, concentration))
    expected = cells * (moments.mean()[0] ** 2 + moments.var()[0])
    observed = weights.multiply(weights).sum(axis=1).A1.mean()
    assert observed == pytest.approx(expected, rel=0.03)


def test_numbers_of_cells_are_drawn_for_every_sample():
    params = MixupParams(concentrations=(5.0,), draw="cells", samples=2000)
    sizes = np.diff(mixture_weights(np.zeros(200_000, int), params, 0).indptr)
    for k in (2, 5, 20, 100):
        assert ((sizes > 0.9 * k) & (sizes <= k)).mean() == pytest.approx(0.25, abs=0.05)


def test_linear_and_log_mixing_differ_and_log_is_the_geometric_mean_of_one_plus_x():
    weights = csr_matrix(np.array([[0.25, 0.75]], np.float32))
    values = csr_matrix(np.array([[8.0, 0.0], [0.0, 3.0]], np.float32))
    np.testing.assert_allclose(mix(values, weights), [[2.0, 2.25]], rtol=1e-6)
    expected = [[9**0.25 - 1, 4**0.75 - 1]]
    np.testing.assert_allclose(mix(values, weights, "log"), expected, rtol=1e-5)


def test_recovery_of_fractions():
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(4), 100)
    perfect = recovery(true, true)
    assert perfect.r == pytest.approx(1)
    assert perfect.type_r == pytest.approx(1)
    assert perfect.total_variation == pytest.approx(0)
    noisy = np.abs(true + rng.normal(0, 0.1, true.shape))
    values = recovery(noisy, true)
    assert values.r == pytest.approx(np.corrcoef(noisy.ravel(), true.ravel())[0, 1])
    of_type = [np.corrcoef(noisy[:, k], true[:, k])[0, 1] for k in range(4)]
    np.testing.assert_allclose(values.r_of_type, of_type)
    assert values.type_r == pytest.approx(np.mean(of_type))
    swapped = recovery(np.eye(2), np.eye(2)[::-1])
    assert swapped.total_variation == pytest.approx(1)
    assert swapped.r == pytest.approx(-1)
    vanished = recovery(np.where(np.arange(4) == 2, 0.0, noisy), true)
    assert np.isnan(vanished.r_of_type).tolist() == [False, False, True, False]
    assert vanished.type_r == pytest.approx(np.mean(np.delete(of_type, 2)))
