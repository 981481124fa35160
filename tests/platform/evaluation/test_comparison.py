"""Ranks, Friedman and Nemenyi over independent data sets, against scipy, published numbers and by hand."""

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.comparison import (
    SCORE_COLUMNS,
    cliques,
    critical_difference,
    dataset_table,
    friedman_test,
    ranking,
    ranking_caution,
    ranks,
    why_no_ranking,
)

METRIC = {"MSI": "auroc", "LISS": "mae"}


def scores(values: dict[str, list[float]], task: str = "MSI", metric: str = "auroc") -> pd.DataFrame:
    rows = [(f"d{k}", m, task, metric, v) for m, column in values.items() for k, v in enumerate(column)]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


@pytest.mark.parametrize(("blocks", "expected"), [(5, 10.3), (10, 7.3), (20, 5.2), (50, 3.3), (100, 2.3)])
def test_critical_difference_of_sixteen_methods(blocks: int, expected: float) -> None:
    assert critical_difference(16, blocks) == pytest.approx(expected, abs=0.05)


def test_critical_difference_of_demsar() -> None:
    """Demšar (2006), section 3.2.2: four methods on fourteen data sets, 1.25."""
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


@pytest.mark.parametrize("digits", [1, 6])
def test_friedman_equals_scipy_with_and_without_ties(digits: int) -> None:
    from scipy.stats import friedmanchisquare

    values = np.round(np.random.default_rng(0).random((9, 4)), digits)
    result = friedman_test(pd.DataFrame(values))
    expected = friedmanchisquare(*values.T)
    assert (result.chi2, result.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert result.df == 3


def test_friedman_without_any_difference_is_not_estimable() -> None:
    assert np.isnan(friedman_test(pd.DataFrame(np.ones((4, 3)))).p)


def test_a_data_set_counts_once_however_many_tasks_it_has() -> None:
    table = pd.concat(
        [
            scores({"a": [0.9, 0.8, np.nan], "b": [0.7, 0.8, 0.6]}),
            scores({"a": [1.0], "b": [2.0]}, "LISS", "mae"),
            scores({"a": [0.1], "b": [0.2]}, "LISS", "pearson"),
        ]
    )
    datasets, dropped = dataset_table(table, METRIC)
    assert dropped == ("d2",)
    assert list(datasets.index) == ["d0", "d1"]
    assert datasets["a"].tolist() == [
        1.0,
        1.5,
    ]  # first in both tasks of d0 (a lower error is better), a tie in d1
    assert ranks(-datasets)["a"].tolist() == [1.0, 1.5]


def test_two_values_of_a_data_set_are_refused() -> None:
    with pytest.raises(DataError, match="two values of 'a' for task MSI in data set d0"):
        dataset_table(pd.concat([scores({"a": [0.9]}), scores({"a": [0.8]})]), METRIC)


def test_ranking_orders_and_joins_what_cannot_be_told_apart() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(12)
    table = scores(
        {
            "bad": list(base - 2),
            "good": list(base + 2),
            "same": list(base + 2.1 - 0.2 * (rng.random(12) < 0.5)),
        }
    )
    result = ranking(table, METRIC)
    assert result is not None
    assert result.mean_ranks.index[-1] == "bad"
    assert result.cliques == (tuple(str(n) for n in result.mean_ranks.index[:2]),)
    assert len(result.datasets) == 12
    assert result.friedman.p < 0.001
    assert f"{result.critical_difference:.2f} apart" in ranking_caution(result)
    assert ranking(scores({"a": [0.1, 0.2, 0.3]}), METRIC) is None


def test_fewer_than_three_data_sets_have_no_ranking_and_the_reason_is_said() -> None:
    """With two blocks even the largest difference of ranks stays below the critical one."""
    names = {f"m{i}": [float(i), float(i)] for i in range(5)}
    assert ranking(scores(names), METRIC) is None
    assert critical_difference(5, 2) > 4
    assert "this is 2 data sets" in why_no_ranking(2)
    assert "Folds, repeats and tasks share patients" in why_no_ranking(1)
    assert why_no_ranking(3) == ""
    three = ranking(scores({name: [*values, values[0]] for name, values in names.items()}), METRIC)
    assert three is not None
    assert "coarse" in ranking_caution(three)


def test_friedman_over_folds_rejects_equal_methods() -> None:
    """Why folds are no blocks: five methods that differ by chance on the same 60 patients, 40 studies."""
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(40):
        y = np.arange(60) % 3 == 0
        of_method = 0.6 * y + rng.normal(size=(5, 60))  # one score per patient and method: equal methods
        blocks = []
        for _ in range(6):
            fold = np.empty(60, int)
            fold[y], fold[~y] = rng.permutation(20) % 5, rng.permutation(40) % 5
            for k in range(5):
                positive, negative = (of_method[:, (fold == k) & (y == c)] for c in (True, False))
                blocks.append((positive[:, :, None] > negative[:, None, :]).mean(axis=(1, 2)))
        false += friedman_test(pd.DataFrame(blocks)).p < 0.05
    assert false / 40 > 0.3


def test_cliques_overlap_and_are_maximal() -> None:
    means = pd.Series([1.0, 1.5, 2.4, 4.0], index=list("abcd"))
    assert cliques(means, 1.0) == (("a", "b"), ("b", "c"))
    assert cliques(means, 5.0) == (("a", "b", "c", "d"),)
    assert cliques(means, 0.1) == ()
