"""Ridge and elastic net against lifelines and scikit-learn, and the optimality conditions."""

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge

from equipoise.models.probes.likelihoods import Cox, Hazards, Logistic, Softmax, SquaredError
from equipoise.models.probes.path import LinearFit, fit_path, optimality_residual, penalty_grid, walk_path

N, P = 120, 6
RNG = np.random.default_rng(3)
X = RNG.normal(size=(N, P)) @ RNG.normal(size=(P, P)) * RNG.uniform(0.3, 3, P) + RNG.normal(size=P)
SCORE = X @ RNG.normal(size=P) / 3
NUMBERS = SCORE + RNG.normal(size=N)
BINARY = (SCORE + RNG.logistic(size=N) > 0.5).astype(float)
CLASSES = np.digitize(SCORE + RNG.normal(size=N), np.quantile(SCORE, [0.3, 0.7])).astype(float)
DAYS = np.ceil(RNG.exponential(np.exp(-SCORE)) * 20)  # many ties
EVENTS = (RNG.random(N) < 0.6).astype(float)


def ridge(likelihood, penalty, x=X, **more):
    return fit_path(x, likelihood, [penalty], l1_ratio=0, tolerance=1e-11, **more).fit(0)


@pytest.mark.parametrize("penalizer", [1e-3, 0.1, 2.0])
def test_ridge_cox_equals_lifelines(penalizer):
    columns = [f"x{i}" for i in range(P)]
    standard = (X - X.mean(axis=0)) / X.std(axis=0, ddof=1)  # lifelines penalises standardised columns
    frame = pd.DataFrame(standard, columns=columns).assign(days=DAYS, event=EVENTS)
    options = {"precision": 1e-12}
    oracle = CoxPHFitter(penalizer=penalizer, l1_ratio=0).fit(frame, "days", "event", fit_options=options)
    fit = ridge(Cox(DAYS, EVENTS), penalizer * N / EVENTS.sum(), standard)  # mean per case against per event
    np.testing.assert_allclose(fit.weights[:, 0], oracle.params_.to_numpy(), atol=1e-6)


def test_stratified_ridge_cox_equals_lifelines():
    strata = RNG.integers(0, 3, N)
    standard = (X - X.mean(axis=0)) / X.std(axis=0, ddof=1)
    frame = pd.DataFrame(standard).assign(days=DAYS, event=EVENTS, strata=strata)
    oracle = CoxPHFitter(penalizer=0.05, l1_ratio=0, strata=["strata"]).fit(
        frame, "days", "event", fit_options={"precision": 1e-12}
    )
    fit = ridge(Cox(DAYS, EVENTS, strata), 0.05 * N / EVENTS.sum(), standard)
    np.testing.assert_allclose(fit.weights[:, 0], oracle.params_.to_numpy(), atol=1e-6)


@pytest.mark.parametrize("penalty", [1e-4, 0.3, 30.0])
def test_ridge_regression_equals_scikit_learn(penalty):
    oracle = Ridge(alpha=N * penalty / 2, solver="cholesky").fit(X, NUMBERS)
    fit = ridge(SquaredError(NUMBERS), penalty)
    np.testing.assert_allclose(fit.weights[:, 0], oracle.coef_, atol=1e-6)
    np.testing.assert_allclose(fit.intercept[0], oracle.intercept_, atol=1e-6)


@pytest.mark.parametrize("penalty", [1e-3, 0.3])
@pytest.mark.parametrize("wide", [False, True])
def test_ridge_logistic_regression_equals_scikit_learn(penalty, wide):
    x = np.random.default_rng(0).normal(size=(N, 300)) + X[:, :1] if wide else X
    oracle = LogisticRegression(C=1 / (N * penalty), tol=1e-12, solver="newton-cg", max_iter=10000).fit(
        x, BINARY
    )
    fit = ridge(Logistic(BINARY), penalty, x)
    np.testing.assert_allclose(fit.weights[:, 0], oracle.coef_[0], atol=1e-6)
    np.testing.assert_allclose(fit.intercept, oracle.intercept_, atol=1e-6)


def test_ridge_multinomial_regression_equals_scikit_learn():
    oracle = LogisticRegression(C=1 / (N * 0.02), tol=1e-12, solver="newton-cg", max_iter=10000).fit(
        X, CLASSES
    )
    fit = ridge(Softmax(CLASSES, 3), 0.02)
    np.testing.assert_allclose(fit.weights.T, oracle.coef_, atol=1e-6)
    centred = fit.intercept - fit.intercept.mean(), oracle.intercept_ - oracle.intercept_.mean()
    np.testing.assert_allclose(*centred, atol=1e-6)


@pytest.mark.parametrize("l1_ratio", [0.3, 1.0])
def test_elastic_net_equals_scikit_learn(l1_ratio):
    x = np.random.default_rng(1).normal(size=(N, 200)) + 0.5 * X[:, :1]
    oracle = ElasticNet(alpha=0.1, l1_ratio=l1_ratio, tol=1e-12, max_iter=100000).fit(x, NUMBERS)
    path = fit_path(x, SquaredError(NUMBERS), [0.6, 0.4, 0.2], l1_ratio=l1_ratio, tolerance=1e-9)
    np.testing.assert_allclose(path.fit(2).weights[:, 0], oracle.coef_, atol=1e-6)
    assert 0 < (path.fit(2).weights != 0).sum() < 150


@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
def test_l1_logistic_regression_equals_scikit_learn(l1_ratio):
    centred = X - X.mean(axis=0)
    oracle = LogisticRegression(
        C=1 / (N * 0.05), l1_ratio=l1_ratio, solver="saga", tol=1e-10, max_iter=100000
    ).fit(centred, BINARY)
    fit = fit_path(centred, Logistic(BINARY), [0.05], l1_ratio=l1_ratio, tolerance=1e-10).fit(0)
    np.testing.assert_allclose(fit.weights[:, 0], oracle.coef_[0], atol=1e-6)


WIDE = np.random.default_rng(5).normal(size=(N, 400)) + 0.4 * np.random.default_rng(6).normal(size=(N, 1))
WIDE[:, :P] += X
FACTORS = np.r_[np.full(3, 0.03), np.ones(397)]


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "likelihood",
    [
        SquaredError(NUMBERS),
        Logistic(BINARY, (0.7, 1.5)),
        Softmax(CLASSES, 3),
        Cox(DAYS, EVENTS),
        Hazards(DAYS, EVENTS, (5.0, 20.0)),
    ],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_optimality_conditions_hold_along_the_path(likelihood, l1_ratio):
    penalties = penalty_grid(WIDE, likelihood, l1_ratio=l1_ratio, factors=FACTORS, count=4, ratio=0.1)
    use = np.stack([np.arange(N) % 4 != 0, np.ones(N)], axis=1).astype(float)
    path = fit_path(WIDE, likelihood, penalties, l1_ratio=l1_ratio, factors=FACTORS, use=use)
    for penalty, value in enumerate(path.penalties):
        for part in range(2):
            residual = optimality_residual(
                WIDE, likelihood, path.fit(penalty, part), value,
                l1_ratio=l1_ratio, factors=FACTORS, use=use[:, part],
            )  # fmt: skip
            assert residual <= 1e-6
    if l1_ratio:
        assert not path.fit(0, 1).weights.any()  # the largest penalty is the smallest that leaves nothing
        assert path.fit(1, 1).weights.any()


def test_a_factor_is_a_scale_of_its_column():
    factors = np.array([0.03, 1, 1, 2, 1, 0.5])
    scaled = ridge(Logistic(BINARY), 0.2, X / np.sqrt(factors))
    direct = ridge(Logistic(BINARY), 0.2, factors=factors)
    np.testing.assert_allclose(direct.weights[:, 0], scaled.weights[:, 0] / np.sqrt(factors), atol=1e-8)


def test_missing_labels_do_not_enter():
    known = np.arange(N) < 90
    fit = ridge(Logistic(np.where(known, BINARY, np.nan)), 0.1, use=known.astype(float))
    alone = fit_path(X[known], Logistic(BINARY[known]), [0.1], l1_ratio=0, tolerance=1e-11).fit(0)
    np.testing.assert_allclose(fit.weights, alone.weights, atol=1e-8)


def test_a_set_without_labels_is_refused():
    with pytest.raises(ValueError, match="no label"):
        fit_path(X, Cox(DAYS, np.zeros(N)), [1.0], l1_ratio=0)
    with pytest.raises(ValueError, match="without gaps"):
        fit_path(np.where(X > 2, np.nan, X), SquaredError(NUMBERS), [1.0], l1_ratio=0)


def test_where_no_column_enters_the_intercept_is_fitted_again():
    """A start from other cases has their intercept; that of these is the logit of their prevalence."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(40, 3))
    likelihood = Logistic(np.r_[np.ones(10), np.zeros(30)])
    start = LinearFit(np.zeros((3, 1)), np.array([0.7]))
    for penalty in (1e3, 1e6):
        (step,) = walk_path(x, likelihood, [penalty], l1_ratio=0.5, start=start)
        fit = step.fit()
        assert (fit.weights == 0).all()
        assert fit.intercept == pytest.approx([np.log(10 / 30)], abs=1e-6)
