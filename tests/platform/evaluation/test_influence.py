"""Influence values against DeLong's definition, brute-force jackknives and the spread of simulated samples."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from equipoise.platform.evaluation import metrics
from equipoise.platform.evaluation.influence import (
    Cell,
    CellMean,
    auroc_influence,
    average_precision_influence,
    concordance_influence,
    jackknife_influence,
    mean_influence,
    pearson_influence,
    r2_influence,
)


def patients(n: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Patients with ties in scores and times."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 3 == 0).astype(float)
    score = np.round(y + rng.normal(size=n), 1)
    time = np.ceil(rng.exponential(6 * np.exp(-score)))
    event = (rng.random(n) < 0.6).astype(float)
    return {"y": y, "score": score, "value": 0.6 * score + rng.normal(size=n), "time": time, "event": event}


def jackknife_by_loop(value: object, arrays: list[np.ndarray], strata: np.ndarray) -> np.ndarray:
    """The patients are really removed, one after the other."""
    n = len(strata)
    left = np.array([float(value(*(np.delete(a, i) for a in arrays))) for i in range(n)])  # type: ignore[operator]
    influence = np.empty(n)
    for label in np.unique(strata):
        inside = strata == label
        size = inside.sum()
        influence[inside] = np.sqrt((size - 1) / size) * (left[inside].mean() - left[inside])
    return influence


@pytest.mark.parametrize("seed", range(3))
def test_closed_forms_are_the_jackknife_of_removed_patients(seed: int) -> None:
    p = patients(seed=seed)
    one, classes = np.zeros(len(p["y"]), int), p["y"].astype(int)
    cases = [
        (auroc_influence, metrics.auroc, [p["y"], p["score"]], classes),
        (average_precision_influence, metrics.average_precision, [p["y"], p["score"]], classes),
        (pearson_influence, metrics.pearson, [p["value"], p["score"]], one),
        (r2_influence, metrics.r2, [p["value"], p["score"]], one),
        (concordance_influence, metrics.harrell_c, [p["time"], p["event"], p["score"]], one),
    ]
    for influence, value, arrays, strata in cases:
        result = influence(*arrays)
        assert float(result.value) == pytest.approx(float(value(*arrays)))
        assert_allclose(result.influence, jackknife_by_loop(value, arrays, strata), atol=1e-12)
        weighted = jackknife_influence(lambda w, v=value, a=arrays: v(*a, w), len(strata), strata)  # type: ignore[misc]
        assert_allclose(result.influence, weighted.influence, atol=1e-7)  # the concordance counts in float32


def test_a_mean_has_the_variance_of_a_mean() -> None:
    x, among = np.random.default_rng(0).normal(size=30), np.arange(30) % 3 > 0
    result = mean_influence(x, among)
    assert (result.influence**2).sum() == pytest.approx(x[among].var(ddof=1) / among.sum())
    assert (result.influence[~among] == 0).all()


def test_only_pairs_inside_a_stratum_count() -> None:
    p = patients(60, seed=4)
    strata = np.arange(60) % 3
    counts = np.zeros(2)
    for s in range(3):
        i = strata == s
        pairs = sum(
            (p["time"][a] < p["time"][b]) or (p["time"][a] == p["time"][b] and p["event"][b] == 0)
            for a in np.flatnonzero(i & (p["event"] == 1))
            for b in np.flatnonzero(i)
        )
        counts += np.array(
            [pairs * float(metrics.harrell_c(p["time"][i], p["event"][i], p["score"][i])), pairs]
        )
    result = concordance_influence(p["time"], p["event"], p["score"], strata)
    assert float(result.value) == pytest.approx(counts[0] / counts[1])
    # A risk that knows the stratum alone has no information inside it.
    assert float(concordance_influence(p["time"], p["event"], strata, strata).value) == 0.5


@pytest.mark.parametrize("metric", ["auroc", "average precision", "concordance", "pearson", "r2"])
def test_the_variance_is_that_of_new_samples(metric: str) -> None:
    """Mean of the estimated variances against the variance over 400 samples of 120 patients."""
    rng = np.random.default_rng(1)
    values, variances = [], []
    for _ in range(400):
        y = (np.arange(120) % 3 == 0).astype(float)
        score = y + rng.normal(size=120)
        if metric == "auroc":
            result = auroc_influence(y, score)
        elif metric == "average precision":
            result = average_precision_influence(y, score)
        elif metric == "concordance":
            time, stop = rng.exponential(np.exp(-score)), rng.exponential(2, 120)
            result = concordance_influence(np.minimum(time, stop), time <= stop, score)
        else:
            target = score + rng.normal(size=120)
            result = (pearson_influence if metric == "pearson" else r2_influence)(target, score)
        values.append(float(result.value))
        variances.append((result.influence**2).sum())
    assert np.mean(variances) / np.var(values, ddof=1) == pytest.approx(1, abs=0.2)


def test_a_mean_over_folds_is_linear() -> None:
    p = patients(60)
    cells, parts = [], []
    for k in range(3):
        index = np.arange(k * 20, k * 20 + 20)
        result = auroc_influence(p["y"][index], p["score"][index])
        cells.append(Cell(float(result.value), result.influence, index, 0, k))
        parts.append((result.influence**2).sum())
    mean = CellMean.of(cells, 60)
    assert mean is not None
    assert mean.value == pytest.approx(np.mean([c.value for c in cells]))
    assert mean.variance == pytest.approx(sum(parts) / 9)
    assert (mean.folds, mean.ratio, mean.repeats) == (3, 0.5, 1)
    nothing = mean.minus(mean)
    assert nothing is not None
    assert (nothing.value, nothing.variance) == (0, 0)


def test_a_patient_of_many_models_counts_once() -> None:
    """Two equal models on the same patients have the variance of one."""
    p = patients(60)
    result = auroc_influence(p["y"], p["score"])
    cells = [Cell(float(result.value), result.influence, np.arange(60), 0, k) for k in range(2)]
    mean = CellMean.of(cells, 60)
    assert mean is not None
    assert mean.variance == pytest.approx((result.influence**2).sum())


def test_the_only_positive_of_a_fold_stands_for_the_fold() -> None:
    """Folds of one positive: the estimated variance of their mean is right on average, not too small."""
    rng = np.random.default_rng(5)
    values, variances = [], []
    y = np.r_[1.0, np.zeros(30)]
    for _ in range(400):
        cells = []
        for k in range(5):
            result = auroc_influence(y, y + rng.normal(size=31))
            assert np.isnan(result.influence[0])
            assert not np.isnan(result.influence[1:]).any()
            cells.append(Cell(float(result.value), result.influence, np.arange(k * 31, k * 31 + 31), 0, k))
        mean = CellMean.of(cells, 155)
        assert mean is not None
        values.append(mean.value)
        variances.append(mean.variance)
    assert np.mean(variances) / np.var(values, ddof=1) == pytest.approx(1.05, abs=0.2)
    assert CellMean.of(cells[:1], 155) is None  # a single cell has nothing to deviate from
    twice = [cells[0], cells[0]._replace(fold=1, value=0.1)]
    assert CellMean.of(twice, 155) is None  # nor has a patient who is in all cells


def test_repeats_add_the_spread_of_their_means() -> None:
    rng = np.random.default_rng(6)
    cells = [
        Cell(v, rng.normal(size=10) / 10, np.arange(k * 10, k * 10 + 10), r, k)
        for r in range(4)
        for k, v in enumerate(rng.normal(0.7, 0.1, 2))
    ]
    mean = CellMean.of(cells, 20)
    assert mean is not None
    of_patients = (mean.by_repeat.mean(0) ** 2).sum()
    assert mean.repeated_variance == pytest.approx(of_patients + np.var(mean.repeat_means, ddof=1))
    two = CellMean.of(cells[:4], 20)
    assert two is not None
    assert two.repeated_variance == pytest.approx(two.variance)
