"""Curves against scikit-learn, and against the metrics whose area they show."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from equipoise.platform.evaluation import metrics
from equipoise.platform.evaluation.curves import GRID, Roc, mean_roc, precision_recall, roc, roc_band, thin


def sample(seed: int = 0, n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(float)
    return y, np.round(y + rng.normal(size=n), 1)


@pytest.mark.parametrize("seed", range(3))
def test_roc_equals_scikit_learn_and_its_area_is_the_auroc(seed: int) -> None:
    from sklearn.metrics import roc_curve

    y, s = sample(seed)
    curve = roc(y, s)
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    assert_allclose(curve.fpr, fpr)
    assert_allclose(curve.tpr, tpr)
    assert_allclose(np.trapezoid(curve.tpr, curve.fpr), metrics.auroc(y, s))


@pytest.mark.parametrize("seed", range(3))
def test_area_under_the_drawn_steps_is_the_average_precision(seed: int) -> None:
    y, s = sample(seed)
    curve = precision_recall(y, s)
    assert_allclose((np.diff(curve.recall) * curve.precision[1:]).sum(), metrics.average_precision(y, s))
    assert curve.recall[[0, -1]].tolist() == [0, 1]
    assert (np.diff(curve.recall)[1:] > 0).all()


def test_mean_of_equal_curves_is_the_curve() -> None:
    y, s = sample()
    curve = roc(y, s)
    mean = mean_roc([curve, curve, curve])
    assert (mean.fpr[0], mean.tpr[0], mean.fpr[-1], mean.tpr[-1]) == (0, 0, 1, 1)
    assert np.abs(np.trapezoid(mean.tpr, mean.fpr) - metrics.auroc(y, s)) < 0.01


def test_mean_follows_the_steps() -> None:
    # One positive in the middle: flat at 0, up at 1/2, flat at 1. A slope in between would be another curve.
    step = roc([0, 1, 0], [3, 2, 1])
    mean = mean_roc([step])
    assert mean.tpr[1:][GRID < 0.5].max() == 0
    assert mean.tpr[1:][GRID >= 0.5].min() == 1
    curves = [roc(*sample(seed, 30)) for seed in range(4)]
    areas = [np.trapezoid(c.tpr, c.fpr) for c in curves]
    assert abs(np.trapezoid(mean_roc(curves).tpr, mean_roc(curves).fpr) - np.mean(areas)) < 0.01


def test_mean_is_vertical() -> None:
    low, high = Roc(np.array([0, 1.0]), np.array([0, 1.0])), Roc(np.array([0, 0, 1.0]), np.array([0, 1, 1.0]))
    mean = mean_roc([low, high])
    assert_allclose(mean.tpr[1:], (GRID + 1) / 2)


def test_band_holds_the_curve_and_is_a_function_of_the_seed() -> None:
    y, s = sample(4, 150)
    band = roc_band(y, s, 0.95, np.random.SeedSequence(1), 200)
    assert (band.low <= band.high).all()
    curve = mean_roc([roc(y, s)]).tpr[1:]
    assert ((band.low - 1e-9 <= curve) & (curve <= band.high + 1e-9)).mean() > 0.95
    again = roc_band(y, s, 0.95, np.random.SeedSequence(1), 200)
    assert (band.low == again.low).all()


def test_curves_need_both_classes() -> None:
    with pytest.raises(ValueError, match="positives and negatives"):
        roc([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="needs positives"):
        precision_recall([0, 0], [0.1, 0.2])


def test_thinning_keeps_the_ends() -> None:
    x, y = thin(np.arange(5000), np.arange(5000) ** 2, 100)
    assert len(x) == 100
    assert (x[0], x[-1], y[-1]) == (0, 4999, 4999**2)
    assert len(thin([1, 2], [3, 4])[0]) == 2
