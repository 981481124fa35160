"""Paired comparisons: influence values over folds, repeats, all pairs, and runs that cannot be compared."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.intervals import delong
from equipoise.platform.evaluation.paired import (
    DIFFERENCE_COLUMNS,
    Candidate,
    difference,
    evaluate_candidate,
    paired_differences,
    pairwise,
    require_comparable,
)
from equipoise.platform.evaluation.params import EvaluationParams

Rows = Callable[..., pd.DataFrame]
FAST = EvaluationParams(bootstrap=200)
MSI = ("test", "all", "MSI", "", "auroc", "model")


def blurred(rows: pd.DataFrame, noise: float, seed: int = 1) -> pd.DataFrame:
    """The same patients as a worse model would score them."""
    added = noise * np.random.default_rng(seed).normal(size=len(rows))
    if (rows["class"] == "").all():
        return rows.assign(score=rows["score"] + added)
    score = rows["score"].clip(1e-9, 1 - 1e-9)
    return rows.assign(score=1 / (1 + np.exp(-np.log(score / (1 - score)) - added)))


def delong_difference(target: pd.Series, first: pd.Series, second: pd.Series) -> tuple[float, float]:
    """Difference of two AUROCs of the same patients and its standard error."""
    auc, c = delong(target, np.stack([first, second]))
    return float(auc[0] - auc[1]), float(np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1]))


@pytest.fixture
def two(binary: Rows) -> tuple[Candidate, Candidate]:
    rows = pd.concat([binary("val", n=80), binary("test", n=80), binary("external", n=40, models=4)])
    return Candidate("one", rows), Candidate("other", blurred(rows, 1.5))


def test_folds_test_different_patients_so_their_variances_add(two: tuple[Candidate, Candidate]) -> None:
    evaluated = [evaluate_candidate(c, FAST, 0) for c in two]
    result, low, high, method, _ = difference(evaluated[0][MSI], evaluated[1][MSI], 0.95)
    tests = []
    for k in range(4):
        parts = [c.predictions[c.predictions["role"] == "test"] for c in two]
        a, b = (part[part["fold"] == k] for part in parts)
        tests.append(delong_difference(a["target"], a["score"], b["score"]))
    assert result.difference == pytest.approx(np.mean([d for d, _ in tests]))
    assert result.se == pytest.approx(np.sqrt(1.5 * sum(se**2 for _, se in tests)) / 4)
    assert result.statistic == pytest.approx(result.difference / result.se)
    assert (low, high) == pytest.approx(
        (result.difference - 1.96 * result.se, result.difference + 1.96 * result.se), abs=1e-4
    )
    assert method == "paired influence values, variance x 1.5"


def test_an_ensemble_is_compared_as_two_fixed_models(two: tuple[Candidate, Candidate]) -> None:
    key = ("external", "a", "MSI", "", "auroc", "model")
    evaluated = [evaluate_candidate(c, FAST, 0) for c in two]
    result, _, _, method, _ = difference(evaluated[0][key], evaluated[1][key], 0.95)
    means = [
        c.predictions.query("role == 'external'").groupby("patient")[["score", "target"]].mean() for c in two
    ]
    expected = delong_difference(means[0]["target"], means[0]["score"], means[1]["score"])
    assert (result.difference, result.se) == pytest.approx(expected)
    assert method == "paired influence values"
    each = (*key[:-1], "fold models")
    assert difference(evaluated[0][each], evaluated[1][each], 0.95)[3] == "paired influence values"


def test_a_change_of_scale_is_no_difference(two: tuple[Candidate, Candidate]) -> None:
    key = (*MSI[:4], "auprc", "model")
    one = two[0]
    squeezed = Candidate("squeezed", one.predictions.assign(score=0.2 + 0.5 * one.predictions["score"]))
    a, b = evaluate_candidate(one, FAST, 3), evaluate_candidate(squeezed, FAST, 3)
    for metric in (key, MSI):
        result, low, high, _, _ = difference(a[metric], b[metric], 0.95)
        assert (result.difference, result.p) == (0, 1)
        assert (low, high) == (0, 0)


def test_paired_intervals_are_narrower_than_the_two_intervals_suggest(
    two: tuple[Candidate, Candidate],
) -> None:
    near = Candidate("near", blurred(two[0].predictions, 0.3))
    key = (*MSI[:4], "auprc", "model")
    a, b = evaluate_candidate(two[0], FAST, 0), evaluate_candidate(near, FAST, 0)
    _, low, high, _, _ = difference(a[key], b[key], 0.95)
    widths = [x[key].result.interval.high - x[key].result.interval.low for x in (a, b)]
    assert high - low < 0.6 * np.hypot(*widths)


def test_three_repeats_take_the_corrected_t(binary: Rows) -> None:
    """Repeats test the same patients again: their variances do not add."""
    from equipoise.platform.evaluation.intervals import corrected_t

    rows = pd.concat([binary(n=80).assign(repeat=r) for r in range(3)])
    evaluated = [evaluate_candidate(Candidate("x", t), FAST, 0) for t in (rows, blurred(rows, 1.0))]
    result, _, _, method, _ = difference(evaluated[0][MSI], evaluated[1][MSI], 0.95)
    values = [one[MSI].result.estimate.mean.fold_means for one in evaluated]  # type: ignore[union-attr]
    assert result == corrected_t(values[0] - values[1], 1 / 3)
    assert method == "corrected resampled t over 12 folds of 3 repeats"


def test_a_clear_difference_is_found_and_corrected(two: tuple[Candidate, Candidate]) -> None:
    runs = {"one": two[0], "near": Candidate("near", blurred(two[0].predictions, 0.1)),
            "noise": Candidate("noise", blurred(two[0].predictions, 50))}  # fmt: skip
    table = paired_differences({n: evaluate_candidate(c, FAST, 0) for n, c in runs.items()}, "one", 0.95)
    assert tuple(table) == DIFFERENCE_COLUMNS
    subset = table[(table["role"] == "test") & (table["metric"] == "auroc")].set_index("run")
    assert subset.loc["noise", "high"] < 0
    assert subset.loc["noise", "p"] < 0.01
    assert subset.loc["noise", "p"] <= subset.loc["noise", "p_pairs"] < 0.05
    assert subset.loc["near", "p_pairs"] >= subset.loc["near", "p"] > 0.05
    assert (table["p_joint"].dropna() >= table["p_pairs"].dropna()).all()
    assert "threshold" not in set(table["metric"])
    assert set(table["reference"]) == {"one"}


def test_what_is_not_estimable_says_why(two: tuple[Candidate, Candidate]) -> None:
    without = [Candidate(c.name, c.predictions[c.predictions["role"] == "test"]) for c in two]
    table = paired_differences({c.name: evaluate_candidate(c, FAST, 0) for c in without}, "one", 0.95)
    row = table[table["metric"] == "sensitivity"].iloc[0]
    assert np.isnan([row["difference"], row["p"], row["p_pairs"], row["p_joint"]]).all()
    assert "there are no validation patients" in row["note"]


def test_survival_and_regression_have_differences_too(survival: Rows, regression: Rows) -> None:
    rows = pd.concat([survival(n=80), regression(n=80)])
    worse = pd.concat([blurred(survival(n=80), 3), blurred(regression(n=80), 3)])
    evaluated = {
        "a": evaluate_candidate(Candidate("a", rows), FAST, 0),
        "b": evaluate_candidate(Candidate("b", worse), FAST, 0),
    }
    table = paired_differences(evaluated, "a", 0.95).set_index("metric")
    assert table.loc["mae", "difference"] > 0
    assert table.loc["mae", "low"] > 0
    assert table.loc["c_index", "difference"] < 0
    assert "no validation patient" in table.loc["ibs", "note"]
    others = table.drop(index="ibs")
    assert (others["method"] == "paired influence values, variance x 1.5").all()


def test_all_pairs_use_the_same_errors_as_a_pair(two: tuple[Candidate, Candidate]) -> None:
    runs = {"one": two[0], "other": two[1], "near": Candidate("near", blurred(two[0].predictions, 0.3, 4))}
    evaluated = {n: evaluate_candidate(c, FAST, 0) for n, c in runs.items()}
    pairs = pairwise(evaluated)
    for key in (MSI, ("external", "a", "MSI", "", "auroc", "model")):
        result = pairs[key]
        test = difference(evaluated["one"][key], evaluated["other"][key], 0.95)[0]
        assert result.names == ("one", "other", "near")
        assert result.difference[0, 1] == pytest.approx(test.difference)
        assert result.se[0, 1] == pytest.approx(test.se)
        assert result.p[0, 1] >= test.p


def test_a_pair_alone_needs_no_correction(two: tuple[Candidate, Candidate]) -> None:
    evaluated = {c.name: evaluate_candidate(c, FAST, 0) for c in two}
    table = paired_differences(evaluated, "one", 0.95)
    known = table.dropna(subset=["p"])
    assert len(known) > 0
    pd.testing.assert_series_equal(known["p"], known["p_pairs"], check_names=False)
    pd.testing.assert_series_equal(known["p"], known["p_joint"], check_names=False)  # there is one task


def test_lower_errors_are_better(regression: Rows) -> None:
    rows = regression(n=80)
    runs = {"good": rows, "bad": blurred(rows, 4)}
    evaluated = {n: evaluate_candidate(Candidate(n, r), FAST, 0) for n, r in runs.items()}
    result = pairwise(evaluated)[("test", "all", "LISS", "", "mae", "model")]
    assert result.best_set == ["good"]


def test_other_patients_folds_or_labels_are_named(two: tuple[Candidate, Candidate]) -> None:
    one, rows = two[0], two[1].predictions
    fewer = rows[rows["patient"] != "pt000"]
    moved = rows.assign(fold=rows["fold"].where(rows["patient"] != "pt001", 3))
    swapped = rows.assign(target=rows["target"].where(rows["patient"] != "pe002", 1.0 - rows["target"]))
    with pytest.raises(DataError, match=r"task MSI, test patients: 1 only in one \(pt000\)"):
        require_comparable([one, Candidate("other", fewer)])
    with pytest.raises(DataError, match=r"folds of 1 test patients differ \(pt001\) in one and other"):
        require_comparable([one, Candidate("other", moved)])
    with pytest.raises(DataError, match=r"labels of 1 external patients differ \(pe002\)"):
        require_comparable([one, Candidate("other", swapped)])
    renamed = rows.assign(**{"class": "MSS"})
    with pytest.raises(DataError, match="classes MSI-H, MSS of 80 val patients differ"):
        require_comparable([one, Candidate("other", renamed)])


def test_unlabelled_patients_need_not_be_shared(two: tuple[Candidate, Candidate]) -> None:
    rows = two[1].predictions
    stranger = rows[rows["patient"] == "pt000"].assign(patient="stranger", target=np.nan)
    more = Candidate("more", pd.concat([rows, stranger]))
    assert require_comparable([two[0], more]) == ["MSI"]


def test_shared_tasks_only(two: tuple[Candidate, Candidate], regression: Rows) -> None:
    more = Candidate("more", pd.concat([two[1].predictions, regression()]))
    assert require_comparable([two[0], more]) == ["MSI"]
    with pytest.raises(DataError, match="no task in common: one has MSI; only has LISS"):
        require_comparable([two[0], Candidate("only", regression())])
    with pytest.raises(DataError, match="same name"):
        require_comparable([two[0], two[0]])
