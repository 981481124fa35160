"""Ranks, Friedman, Nemenyi, Holm and P(best) against scipy, published numbers and by hand."""

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.comparison import (
    SCORE_COLUMNS,
    best_shares,
    block_table,
    cliques,
    critical_difference,
    friedman_test,
    holm,
    ranking,
    ranking_caution,
    ranks,
)

METRIC = {"MSI": "auroc", "LISS": "mae"}


def scores(values: dict[str, list[float]], task: str = "MSI", metric: str = "auroc") -> pd.DataFrame:
    rows = [(m, f"0-{k}", task, metric, v) for m, column in values.items() for k, v in enumerate(column)]
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


def test_blocks_are_oriented_and_incomplete_ones_named() -> None:
    table = pd.concat(
        [
            scores({"a": [0.9, 0.8, np.nan], "b": [0.7, 0.8, 0.6]}),
            scores({"a": [1.0], "b": [2.0]}, "LISS", "mae"),
            scores({"a": [0.1], "b": [0.2]}, "LISS", "pearson"),
        ]
    )
    blocks, dropped = block_table(table, METRIC)
    assert dropped == ("MSI, 0-2",)
    assert len(blocks) == 3
    assert ranks(blocks)["a"].tolist() == [1.0, 1.0, 1.5]  # lower error is better; a tie shares


def test_two_values_in_a_block_are_refused() -> None:
    with pytest.raises(DataError, match="two values of 'a' for task MSI, fold 0-0"):
        block_table(pd.concat([scores({"a": [0.9]}), scores({"a": [0.8]})]), METRIC)


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
    assert (result.blocks, result.tasks, result.folds) == (12, 1, 12)
    assert result.friedman.p < 0.001
    assert f"{result.critical_difference:.2f} apart" in ranking_caution(result)
    assert "not independent" in ranking_caution(result)
    assert ranking(scores({"a": [0.1, 0.2]}), METRIC) is None


def test_few_blocks_are_called_coarse() -> None:
    names = {f"m{i}": [float(i), float(i)] for i in range(5)}
    result = ranking(scores(names), METRIC)
    assert result is not None
    assert "coarse" in ranking_caution(result)
    assert result.critical_difference > 4  # no two of five methods can differ on two blocks
    assert result.cliques == (("m4", "m3", "m2", "m1", "m0"),)


def test_cliques_overlap_and_are_maximal() -> None:
    means = pd.Series([1.0, 1.5, 2.4, 4.0], index=list("abcd"))
    assert cliques(means, 1.0) == (("a", "b"), ("b", "c"))
    assert cliques(means, 5.0) == (("a", "b", "c", "d"),)
    assert cliques(means, 0.1) == ()


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    result = holm([0.5, np.nan, 0.9, 0.02])
    np.testing.assert_allclose(result[[0, 2, 3]], [1.0, 1.0, 0.06])
    assert np.isnan(result[1])


def test_best_shares_by_hand() -> None:
    drawn = {
        "a": [np.array([3.0, 3.0, 1.0, 2.0]), np.array([3.0, 1.0, 3.0, np.nan])],
        "b": [np.array([1.0, 1.0, 3.0, 2.0]), np.array([1.0, 3.0, 1.0, 1.0])],
    }
    result = best_shares(drawn)
    # Mean ranks of a: 1, 1.5, 1.5; the replicate without a value is left out, ties share.
    assert result.loc["a", "p_best"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert result["p_best"].sum() == pytest.approx(1)
    assert result.loc["a", "rank_low"] < result.loc["b", "rank_low"]
    assert best_shares({"a": [np.array([np.nan])], "b": [np.array([1.0])]})["p_best"].isna().all()
