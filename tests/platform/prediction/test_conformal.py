"""Prediction sets: worked by hand, exact coverage over exchangeable data by simulation, and the state as JSON."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import betabinom

from equipoise.platform.errors import DataError
from equipoise.platform.prediction.conformal import Conformal
from equipoise.platform.prediction.conformal_task import TaskConformal
from equipoise.platform.prediction.coverage import (
    Calibrated,
    clopper_pearson,
    covered,
    expected_range,
    external_coverage,
    nested_coverage,
    trade_off,
)
from equipoise.platform.prediction.nonconformity import class_nonconformity


def rows(role, fold, patients, task="MSI", repeat=0, cohort="A", **columns):
    """Rows of a predictions table; ``columns`` are ``class``, ``score`` and ``target`` or ``time`` and ``event``."""
    fixed = {
        "cohort": cohort,
        "site": "S",
        "repeat": repeat,
        "fold": fold,
        "role": role,
        "task": task,
        "class": "",
    }
    nothing = {"target": np.nan, "time": np.nan, "event": np.nan}
    return pd.DataFrame({"patient": patients, **fixed, **nothing, **columns})


def binary(role, fold, positive, negative, **extra):
    """A binary task: probabilities of positive and of negative patients."""
    names = [f"{role}{fold}-{i}" for i in range(len(positive) + len(negative))]
    target = [1.0] * len(positive) + [0.0] * len(negative)
    return rows(
        role, fold, names, **{"class": "MSIH", "score": [*positive, *negative], "target": target}, **extra
    )


def ask(probabilities, folds=(0,), **extra):
    """New patients with the same score from every fold model."""
    names = [f"new{i}" for i in range(len(probabilities))]
    return pd.concat(
        [rows("external", f, names, **{"class": "MSIH", "score": probabilities}, **extra) for f in folds]
    )


def test_p_values_worked_by_hand() -> None:
    """Four positive patients with nonconformity .1 .2 .3 .4, four negative ones with .1 .2 .3 .6."""
    table = binary("test", 0, [0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.6])
    task = Conformal.fit(table, level=0.75).tasks["MSI"]
    p = task.p_values(ask([0.75, 0.05]))
    # .75: as MSIH .25, reached by .3 and .4 → 3/5; as not MSIH .75, reached by nobody → 1/5
    np.testing.assert_allclose(p.loc["new0"].to_numpy(), [1 / 5, 3 / 5])
    np.testing.assert_allclose(p.loc["new1"].to_numpy(), [5 / 5, 1 / 5])
    sets = task.apply(ask([0.75, 0.05, 0.5])).set_index("patient")["labels"]
    assert sets["new0"] == ("MSIH",)
    assert sets["new1"] == ("not MSIH",)
    # .5 as MSIH: nobody reaches .5 → 1/5, excluded; as not MSIH: .6 does → 2/5
    assert sets["new2"] == ("not MSIH",)
    marginal = Conformal.fit(table, level=0.75, class_conditional=False).tasks["MSI"]
    # all eight: .1 .1 .2 .2 .3 .3 .4 .6
    np.testing.assert_allclose(marginal.p_values(ask([0.65])).to_numpy(), [[1 / 9, 3 / 9]])


def test_fold_models_are_compared_with_their_own_patients() -> None:
    """A fold model that is less sure is no reason to exclude: its patients had the same scores."""
    table = pd.concat([binary("test", 0, [0.9] * 9, [0.1] * 9), binary("test", 1, [0.55] * 10, [0.45] * 10)])
    task = Conformal.fit(table, level=0.9).tasks["MSI"]
    sure = pd.concat([ask([0.9], folds=[0]), ask([0.55], folds=[1])])
    # as MSIH everybody is at least as unusual: 20/20; as not MSIH .9 and .55 are above all scores: 1/20
    np.testing.assert_allclose(task.p_values(sure).to_numpy(), [[1 / 20, 1.0]])
    assert task.apply(sure)["labels"].tolist() == [("MSIH",)]
    with pytest.raises(DataError, match="fold model 0-1 are missing"):
        task.apply(ask([0.9], folds=[0]))


def test_repeats_count_patients_once() -> None:
    """Two repeats with the same scores give the p values of one."""
    one = binary("test", 0, [0.9, 0.8, 0.7], [0.1, 0.2, 0.3])
    twice = pd.concat([one, one.assign(repeat=1)])
    asked = ask([0.72, 0.4])
    once = Conformal.fit(one).tasks["MSI"].p_values(asked)
    both = Conformal.fit(twice).tasks["MSI"].p_values(pd.concat([asked, asked.assign(repeat=1)]))
    np.testing.assert_allclose(both.to_numpy(), once.to_numpy())
    assert not np.isfinite(Conformal.fit(twice).tasks["MSI"].floor)


def test_a_class_with_few_patients_is_never_excluded_and_said_so() -> None:
    table = binary("test", 0, [0.9, 0.8, 0.7], [0.1] * 40)
    task = Conformal.fit(table, level=0.9).tasks["MSI"]
    assert task.apply(ask([0.0]))["labels"].tolist() == [("not MSIH", "MSIH")]
    assert task.notes == ("3 calibrating patients of MSIH, where 90% needs 9: this class is in every set",)


def test_adaptive_scores_by_hand() -> None:
    """Probability of everything at least as likely; ties count together."""
    given = np.array([[0.6, 0.3, 0.1], [0.4, 0.4, 0.2]])
    np.testing.assert_allclose(class_nonconformity(given, "aps"), [[0.6, 0.9, 1.0], [0.8, 0.8, 1.0]])
    np.testing.assert_allclose(class_nonconformity(given, "lac"), [[0.4, 0.7, 0.9], [0.6, 0.6, 0.8]])


def test_intervals_are_those_of_jackknife_plus() -> None:
    """Residuals 1, 2, 3, 4 of one model: at 60 % the third smallest of x + r and the third largest of x - r."""
    table = rows("test", 0, list("abcd"), score=[1.0, 2, 3, 4], target=[2.0, 4, 6, 8])
    new = rows("external", 0, ["x"], score=[10.0])
    for level, low, high in ((0.6, 7, 13), (0.79, 6, 14), (0.9, -np.inf, np.inf)):
        found = Conformal.fit(table, level=level).apply(new).iloc[0]
        assert (found["low"], found["high"]) == (low, high)
    # two fold models: ends of both, (0 - 1, 0 - 2) and (10 - 3, 10 - 4) in ascending order
    other = table.assign(fold=[0, 0, 1, 1])
    new = pd.concat([rows("external", 0, ["x"], score=[0.0]), rows("external", 1, ["x"], score=[10.0])])
    found = Conformal.fit(other, level=0.6).apply(new).iloc[0]
    assert (found["low"], found["high"]) == (-1, 13)


def simulate(rng, n, fold, role, slope):
    """Noisy probabilities of a rare class by a model of any quality."""
    target = (rng.random(n) < 0.3).astype(float)
    logit = slope * (target - 0.5) - 0.8 + rng.normal(size=n)
    names = [f"{role}{fold}-{i}" for i in range(n)]
    return rows(role, fold, names, **{"class": "MSIH", "score": 1 / (1 + np.exp(-logit)), "target": target})


@pytest.mark.parametrize("conditional", [True, False])
def test_split_sets_cover_exactly_what_they_promise(conditional: bool) -> None:
    """Over exchangeable patients the coverage is 1 - floor(alpha (m + 1)) / (m + 1) without ties (Vovk 2012)."""
    rng = np.random.default_rng(1)
    level, hits, seen, exact = 0.8, np.zeros(2), np.zeros(2), np.zeros(2)
    for _ in range(80):
        calibrate = simulate(rng, 60, 0, "val", 2.0)
        new = simulate(rng, 60, 0, "test", 2.0)
        task = Conformal.fit(calibrate, level=level, role="val", class_conditional=conditional).tasks["MSI"]
        found = covered(task, new)
        for c, name in enumerate(task.classes):
            m = int((calibrate["target"] == c).sum()) if conditional else 60
            of_class = found[found["class"] == name]
            hits[c] += of_class["covered"].sum()
            seen[c] += len(of_class)
            exact[c] += len(of_class) * (1 - np.floor((1 - level) * (m + 1) + 1e-9) / (m + 1))
    if conditional:  # in each class: standard error about .009 between calibrations
        np.testing.assert_allclose(hits / seen, exact / seen, atol=0.03)
    else:  # on average alone; the rare class has less
        assert hits.sum() / seen.sum() == pytest.approx(exact.sum() / seen.sum(), abs=0.02)
        assert hits[1] / seen[1] < hits[0] / seen[0]


def test_cross_conformal_intervals_cover_at_least_the_floor() -> None:
    """Ridge models of five folds in many dimensions: coverage near the level, above what is proved."""
    rng = np.random.default_rng(2)
    level, hits, n, d, k = 0.8, [], 50, 20, 5
    for _ in range(30):
        weights = rng.normal(size=d) / np.sqrt(d)
        x, new = rng.normal(size=(n, d)), rng.normal(size=(40, d))
        y, truth = x @ weights + rng.normal(size=n), new @ weights + rng.normal(size=40)
        tables = []
        for fold in range(k):
            test = np.arange(n) % k == fold
            xt, yt = x[~test], y[~test]
            model = np.linalg.solve(xt.T @ xt + np.eye(d), xt.T @ yt)
            tables.append(
                rows(
                    "test",
                    fold,
                    [f"p{i}" for i in np.flatnonzero(test)],
                    score=x[test] @ model,
                    target=y[test],
                )
            )
            tables.append(
                rows("external", fold, [f"n{i}" for i in range(40)], score=new @ model, target=truth)
            )
        table = pd.concat(tables)
        conformal = Conformal.fit(table, level=level)
        hits.append(external_coverage(conformal, table)["coverage"].iloc[0])
    floor = conformal.tasks["MSI"].floor
    assert floor == pytest.approx(1 - 2 * (1 - level) - min(2 * 0.8 / 11, 0.9 / 6))
    assert floor < level - 0.03 < np.mean(hits) < level + 0.06


def test_survival_bounds_cover_survival_under_any_censoring() -> None:
    """Bounds hold the observed time at the level, and death more often, though censoring follows the risk."""
    rng = np.random.default_rng(3)
    level, observed, died = 0.8, [], []
    for _ in range(40):
        n = 160
        risk = rng.normal(size=n)
        death = 1000 * np.exp(-0.8 * risk) * rng.exponential(size=n)
        censoring = 1500 * np.exp(-0.5 * risk) * rng.exponential(size=n)
        time, event = np.minimum(death, censoring), (death <= censoring).astype(float)
        names = [f"p{i}" for i in range(n)]
        parts = [("val", slice(0, 40)), ("test", slice(40, 100)), ("external", slice(100, 160))]
        table = pd.concat(
            rows(role, 0, names[part], task="OS", score=risk[part], time=time[part], event=event[part])
            for role, part in parts
        )
        found = Conformal.fit(table, level=level).apply(table[table["role"] == "external"])
        assert (found["low"] > 0).all()
        assert np.isinf(found["high"]).all()
        low = found.set_index("patient")["low"].reindex(names[100:160]).to_numpy()
        observed.append((time[100:160] >= low).mean())
        died.append((death[100:160] >= low).mean())
        # who has the higher risk gets the earlier bound
        assert np.corrcoef(np.log(low), risk[100:160])[0, 1] < -0.9
    assert np.mean(observed) == pytest.approx(1 - np.floor(0.2 * 61) / 61, abs=0.03)
    assert np.mean(died) > np.mean(observed)


def test_expected_range_is_beta_binomial() -> None:
    """One cell: the quantiles of scipy's beta-binomial; several: a simulation."""
    low, high = expected_range([Calibrated(49, 100)], 0.9)
    missed = betabinom(100, 5, 45)
    assert (low, high) == (1 - missed.ppf(0.975) / 100, 1 - missed.ppf(0.025) / 100)
    rng = np.random.default_rng(4)
    cells = [Calibrated(20, 30), Calibrated(35, 50), Calibrated(5, 10)]
    ranks = [(2, 19), (3, 33)]
    draws = (
        sum(rng.binomial(n, rng.beta(a, b, 40_000)) for n, (a, b) in zip((30, 50), ranks, strict=True)) / 90
    )
    low, high = expected_range(cells, 0.9)
    assert low == pytest.approx(1 - np.quantile(draws, 0.975), abs=0.012)
    assert high == pytest.approx(1 - np.quantile(draws, 0.025), abs=0.012)


def test_clopper_pearson_of_a_published_table() -> None:
    """Newcombe, Statistics in Medicine 17:857 (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2527, 0.3676),
        (15, 148): (0.0578, 0.1617),
        (0, 20): (0, 0.1684),
        (1, 29): (0.0009, 0.1776),
    }
    for (k, n), bounds in published.items():
        np.testing.assert_allclose(clopper_pearson(k, n), bounds, atol=6e-5)


def test_nested_coverage_of_exchangeable_patients_lies_in_its_range() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(10):
        table = pd.concat(
            [simulate(rng, 60, fold, role, 2.0) for fold in range(3) for role in ("val", "test")]
        )
        found = nested_coverage(table, level=0.85)
        assert set(found["class"]) == {"", "MSIH", "not MSIH"}
        every = found[found["class"] == ""].iloc[0]
        assert every["n"] == 180
        assert every["low"] < every["coverage"] < every["high"]
        inside += every["expected_low"] <= every["coverage"] <= every["expected_high"]
    assert inside >= 7  # .95 of 10; below 7 has probability .001


def test_coverage_is_lost_where_patients_differ() -> None:
    """A shift of the scores: the measured external coverage says so."""
    rng = np.random.default_rng(6)
    table = pd.concat([simulate(rng, 80, fold, "test", 3.0) for fold in range(2)])
    shifted = simulate(rng, 200, 0, "external", 3.0)
    shifted["score"] = shifted["score"] ** 4
    table = pd.concat([table, shifted, shifted.assign(fold=1)])
    found = external_coverage(Conformal.fit(table), table).set_index("class")
    assert found.loc["MSIH", "coverage"] < 0.6
    assert found.loc["not MSIH", "coverage"] > 0.85
    assert found["expected_low"].isna().all()


def test_trade_off_uses_validation_patients_alone() -> None:
    """A higher level decides fewer patients more accurately; test rows change nothing."""
    rng = np.random.default_rng(7)
    table = pd.concat([simulate(rng, 150, fold, role, 2.5) for fold in range(2) for role in ("val", "test")])
    found = trade_off(table, levels=(0.7, 0.9, 0.95))
    pd.testing.assert_frame_equal(found, trade_off(table[table["role"] == "val"], levels=(0.7, 0.9, 0.95)))
    assert found["n"].tolist() == [300] * 3
    decided = found.loc[found["level"] >= 0.9, "decided"].to_numpy()
    assert decided[0] > decided[1]
    np.testing.assert_array_less(found["level"] - 0.06, found["coverage"])
    np.testing.assert_array_less(found["coverage"], found["level"] + 0.06)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression", "survival"])
def test_the_state_is_json_without_patients(kind: str) -> None:
    rng = np.random.default_rng(8)
    names = [f"TCGA-{i}" for i in range(30)]
    if kind == "binary":
        known = {"class": "X", "score": rng.random(30), "target": np.arange(30) % 2.0}
        table = pd.concat([rows(role, 0, names, **known) for role in ("test", "external")])
    elif kind == "multiclass":
        p = rng.dirichlet(np.ones(3), 30)
        table = pd.concat(
            rows(role, 0, names, **{"class": c, "score": p[:, k], "target": (np.arange(30) % 3 == k) * 1.0})
            for role in ("test", "external")
            for k, c in enumerate("abc")
        )
    elif kind == "regression":
        known = {"score": rng.normal(size=30), "target": rng.normal(size=30)}
        table = pd.concat([rows(role, 0, names, **known) for role in ("test", "external")])
    else:
        known = {"score": rng.normal(size=30), "time": rng.exponential(size=30), "event": np.ones(30)}
        table = pd.concat([rows(role, 0, names, **known) for role in ("val", "test", "external")])
    fitted = Conformal.fit(table, level=0.8)
    text = json.dumps(fitted.to_dict())
    assert "TCGA" not in text
    asked = table[table["role"] == "external"].assign(target=np.nan, time=np.nan, event=np.nan)
    again = Conformal.from_dict(json.loads(text))
    pd.testing.assert_frame_equal(again.apply(asked), fitted.apply(asked))
    refit = fitted.as_refit()
    if kind == "survival":
        assert refit.tasks == {}
    else:
        pd.testing.assert_frame_equal(refit.apply(asked), fitted.apply(asked))
        assert "no bound is proved" in refit.tasks["MSI"].guarantee


def test_wrong_levels_and_states_are_refused() -> None:
    table = binary("test", 0, [0.9], [0.1])
    with pytest.raises(DataError, match="above 0.5 and below 1"):
        Conformal.fit(table, level=90)
    with pytest.raises(DataError, match="no labelled val patient"):
        Conformal.fit(table, role="val")
    with pytest.raises(DataError, match="not the state of conformal sets"):
        TaskConformal.from_dict({"task": "MSI"})
