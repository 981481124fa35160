"""Late fusion: weights are the constrained optimum over held-out outputs, by scikit-learn, scipy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import Ridge

from equipoise.models.losses import cox_partial_likelihood
from equipoise.models.probes.late import RIDGE, fit_one, fuse_late
from equipoise.models.probes.likelihoods import Cox, Logistic, Softmax, SquaredError
from equipoise.models.probes.selection import inner_folds

N = 120


@pytest.fixture(scope="module")
def blocks() -> list[np.ndarray]:
    """Three modalities of 3, 6 and 4 columns; the last one is noise."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(N, p)) for p in (3, 6, 4)]


def signal(blocks) -> np.ndarray:
    return 2 * blocks[0][:, 0] + blocks[1][:, 1] - blocks[1][:, 2]


def fused(blocks, likelihood, *, present=None, known=None, l1_ratio=0.0):
    known = np.ones(N, bool) if known is None else known
    present = np.ones((N, len(blocks)), bool) if present is None else present
    fold = inner_folds(likelihood, known, 4, seed=1)
    factors = [np.ones(x.shape[1]) for x in blocks]
    shown = [x * present[:, m, None] for m, x in enumerate(blocks)]
    return fuse_late(shown, factors, present, likelihood, known, fold, l1_ratio=l1_ratio, penalties=8), fold


def held_out(x, y, fold, penalty) -> np.ndarray:
    """scikit-learn's ridges that leave a fold out, on the scale of the outputs for their own training cases."""
    z = np.zeros(N)
    for k in range(4):
        inside = fold != k
        ridge = Ridge(alpha=penalty * inside.sum() / 2).fit(x[inside], y[inside])
        own = ridge.predict(x[inside])
        z[~inside] = (ridge.predict(x[~inside]) - own.mean()) / own.std()
    return z


def test_weights_of_a_regression_are_those_of_scikit_learn_and_nnls(blocks) -> None:
    y = signal(blocks) + np.random.default_rng(1).normal(size=N) + 5
    fusion, fold = fused(blocks, SquaredError(y))
    z = np.stack([held_out(x, y, fold, p) for x, p in zip(blocks, fusion.penalties, strict=True)], axis=1)
    for pattern in range(1, 8):
        has = np.flatnonzero([pattern >> m & 1 for m in range(3)])
        # Minimum of the mean square plus the small ridge, with the intercept projected out, under w >= 0.
        inputs = z[:, has] - z[:, has].mean(axis=0)
        rows = np.vstack([inputs / np.sqrt(N), np.sqrt(RIDGE / 2) * np.eye(len(has))])
        expected, _ = nnls(rows, np.r_[(y - y.mean()) / np.sqrt(N), np.zeros(len(has))])
        np.testing.assert_allclose(fusion.weights[pattern, has], expected, atol=2e-4)
        intercept = y.mean() - z[:, has].mean(axis=0) @ expected
        assert fusion.intercepts[pattern, 0] == pytest.approx(intercept, abs=2e-3)
    assert fusion.weights[7, 0] > fusion.weights[7, 1] > fusion.weights[7, 2]
    assert fusion.intercepts[0, 0] == pytest.approx(y.mean(), abs=1e-6)
    loss = np.mean((y - z @ fusion.weights[7] - fusion.intercepts[7, 0]) ** 2)
    assert fusion.gain == pytest.approx(y.var() - loss, abs=1e-3)


def test_models_of_modalities_have_outputs_of_mean_0_and_sd_1(blocks) -> None:
    y = signal(blocks) + np.random.default_rng(1).normal(size=N)
    fusion, _ = fused(blocks, SquaredError(y))
    for x, fit, penalty in zip(blocks, fusion.fits, fusion.penalties, strict=True):
        own = Ridge(alpha=penalty * N / 2).fit(x, y)
        expected = (own.predict(x) - y.mean()) / own.predict(x).std()
        np.testing.assert_allclose(fit.outputs(x)[:, 0], expected, atol=1e-6)


def survival(blocks, rng) -> tuple[np.ndarray, np.ndarray]:
    days = rng.exponential(np.exp(-0.7 * signal(blocks)))
    censored = rng.exponential(2, N)
    return np.ceil(50 * np.minimum(days, censored)), (days <= censored).astype(float)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
def test_weights_under_cox_meet_the_conditions_of_the_optimum(blocks, l1_ratio) -> None:
    """By torch: the slope is zero at positive weights and not negative at zero ones."""
    time, event = survival(blocks, np.random.default_rng(2))
    likelihood = Cox(time, event)
    fusion, fold = fused(blocks, likelihood, l1_ratio=l1_ratio)
    z = np.zeros((N, 3))
    for m, x in enumerate(blocks):
        for k in range(4):
            inside = fold != k
            one = fit_one(x, np.ones(x.shape[1]), likelihood, inside, fusion.penalties[m], l1_ratio)
            z[~inside, m] = one.outputs(x[~inside])[:, 0]
    weights = torch.tensor(fusion.weights[7], requires_grad=True)
    risk = torch.from_numpy(z) @ weights
    loss = cox_partial_likelihood(risk, torch.from_numpy(time), torch.from_numpy(event), ties="efron")
    (loss / event.sum() + RIDGE / 2 * (weights**2).sum()).backward()
    slope = weights.grad.numpy()
    positive = fusion.weights[7] > 1e-6
    assert positive[:2].all()
    np.testing.assert_allclose(slope[positive], 0, atol=3e-4)
    assert (slope[~positive] >= -3e-4).all()
    assert (fusion.weights >= 0).all()
    assert not fusion.intercepts.any()


def test_a_case_without_a_modality_gets_the_fusion_of_the_others(blocks) -> None:
    """Whatever the first two know, cases that lack them are scored as if nobody had them."""
    rng = np.random.default_rng(3)
    time, event = survival(blocks, rng)
    likelihood = Cox(time, event)
    present = np.ones((N, 3), bool)
    present[rng.random(N) < 0.3, 1] = False
    whole, _ = fused(blocks, likelihood, present=present)
    without, _ = fused([blocks[0], blocks[2]], likelihood, present=present[:, [0, 2]])
    np.testing.assert_allclose(whole.weights[0b101, [0, 2]], without.weights[0b11], atol=1e-6)
    for mine, theirs in ((0, 0), (2, 1)):
        np.testing.assert_allclose(whole.fits[mine].weights, without.fits[theirs].weights, atol=1e-8)
    assert whole.weights[0b101, 1] == 0


def test_a_modality_without_labels_takes_no_part(blocks) -> None:
    y = signal(blocks)
    present = np.ones((N, 3), bool)
    present[:, 1] = False
    fusion, _ = fused(blocks, SquaredError(y), present=present)
    assert np.isnan(fusion.penalties[1])
    assert not fusion.weights[:, 1].any()
    assert not fusion.fits[1].weights.any()
    np.testing.assert_allclose(fusion.weights[0b111], fusion.weights[0b101])


def test_separable_classes_have_finite_weights(blocks) -> None:
    y = (signal(blocks) > 0).astype(float)
    fusion, _ = fused([10 * signal(blocks)[:, None], blocks[2]], Logistic(y))
    assert 0 < fusion.weights[3, 0] < 200
    assert fusion.weights[3, 1] < 1


def test_classes_share_the_weight_of_a_modality(blocks) -> None:
    y = np.digitize(signal(blocks) + 0.5 * np.random.default_rng(5).normal(size=N), [-1, 1]).astype(float)
    fusion, _ = fused(blocks, Softmax(y, 3))
    assert fusion.weights.shape == (8, 3)
    assert fusion.intercepts.shape == (8, 3)
    assert fusion.fits[0].weights.shape == (3, 3)
    assert fusion.weights[7, 0] > fusion.weights[7, 2]
    assert fusion.gain > 0.2
