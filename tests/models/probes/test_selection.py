"""The penalty is chosen as a plain loop over folds would choose it."""

import numpy as np
import pytest
import torch

from equipoise.models.cox import cox_partial_likelihood
from equipoise.models.probes.likelihoods import Cox, Logistic, SquaredError
from equipoise.models.probes.path import fit_path
from equipoise.models.probes.selection import choose_penalty, inner_folds

N, P = 80, 30
RNG = np.random.default_rng(11)
X = RNG.normal(size=(N, P))
SCORE = X[:, 0] - X[:, 1]
DAYS = np.ceil(RNG.exponential(np.exp(-SCORE)) * 30)
EVENTS = (RNG.random(N) < 0.7).astype(float)
BINARY = (SCORE + RNG.logistic(size=N) > 0.8).astype(float)
PENALTIES = np.geomspace(10, 0.01, 7)


def partial_likelihood(score, rows):
    parts = (torch.as_tensor(values[rows]) for values in (score, DAYS, EVENTS))
    return cox_partial_likelihood(*parts).item()


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
def test_cox_scores_are_verweij_and_van_houwelingens(l1_ratio):
    fold = np.arange(N) % 4
    choice = choose_penalty(
        X, Cox(DAYS, EVENTS), l1_ratio=l1_ratio, penalties=PENALTIES, folds=fold, tolerance=1e-8
    )
    expected = np.zeros(len(PENALTIES))
    for k in range(4):
        kept = fold != k
        path = fit_path(X[kept], Cox(DAYS[kept], EVENTS[kept]), PENALTIES, l1_ratio=l1_ratio)
        for i in range(len(PENALTIES)):
            score = path.fit(i).outputs(X)[:, 0]
            expected[i] += partial_likelihood(score, np.full(N, True)) - partial_likelihood(score, kept)
    expected /= EVENTS.sum()
    tried = len(choice.scores)
    np.testing.assert_allclose(choice.scores, expected[:tried], atol=1e-3)
    assert choice.penalty == choice.penalties[np.argmin(expected)]
    assert choice.scores.min() < choice.null_score


def test_deviance_of_held_out_cases_decides_elsewhere():
    fold = np.arange(N) % 4
    choice = choose_penalty(X, Logistic(BINARY), l1_ratio=0, penalties=PENALTIES, folds=fold)
    expected = np.zeros(len(PENALTIES))
    for k in range(4):
        kept = fold != k
        path = fit_path(X[kept], Logistic(BINARY[kept]), PENALTIES, l1_ratio=0)
        for i in range(len(PENALTIES)):
            logit = path.fit(i).outputs(X[~kept])[:, 0]
            expected[i] += (np.logaddexp(0, logit) - BINARY[~kept] * logit).sum() / N
    np.testing.assert_allclose(choice.scores, expected, atol=1e-3)
    null = -sum(
        BINARY[fold == k].sum() * np.log(BINARY[fold != k].mean())
        + (1 - BINARY[fold == k]).sum() * np.log(1 - BINARY[fold != k].mean())
        for k in range(4)
    )
    assert choice.null_score == pytest.approx(null / N, abs=1e-6)
    everyone = fit_path(X, Logistic(BINARY), [choice.penalty], l1_ratio=0).fit(0)
    np.testing.assert_allclose(choice.fit.weights, everyone.weights, atol=1e-6)


def test_noise_is_left_alone():
    noise = np.random.default_rng(0).normal(size=(N, 200))
    choice = choose_penalty(noise, SquaredError(RNG.normal(size=N)), l1_ratio=1.0)
    assert (choice.fit.weights != 0).sum() <= 3


def test_folds_spread_classes_and_events_of_every_stratum():
    strata = np.repeat(["a", "b"], N // 2)
    fold = inner_folds(Cox(DAYS, EVENTS, strata), np.ones(N), 4, seed=0)
    for name in "ab":
        for seen in (0, 1):
            counts = np.bincount(fold[(strata == name) & (seen == EVENTS)], minlength=4)
            assert counts.max() - counts.min() <= 1
    few = Cox([1.0, 2, 3, 4, 5, 6], [1, 0, 0, 1, 0, 0], ["a", "a", "a", "b", "b", "b"])
    for seed in range(20):  # one event in each of two strata: one in each of two folds
        fold = inner_folds(few, np.ones(6), 2, seed)
        assert fold[0] != fold[3]
    used = np.arange(N) < 60
    fold = inner_folds(Logistic(BINARY), used, 3, seed=1)
    assert (fold[~used] == -1).all()
    assert set(fold[used]) == {0, 1, 2}
