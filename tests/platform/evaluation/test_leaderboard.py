"""The leaderboard: order, all pairs, the table, references."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.leaderboard import ESTIMATE_COLUMNS, Leaderboard, compare
from equipoise.platform.evaluation.paired import Candidate
from equipoise.platform.evaluation.params import EvaluationParams

Rows = Callable[..., pd.DataFrame]
FAST = EvaluationParams(bootstrap=100)


def worse(rows: pd.DataFrame, noise: float) -> pd.DataFrame:
    """Scores with so much noise."""
    added = noise * np.random.default_rng(2).normal(size=len(rows))
    score = rows["score"].where(rows["class"] == "", np.log(rows["score"].clip(1e-9, 1 - 1e-9)))
    blurred = score + added
    return rows.assign(score=blurred.where(rows["class"] == "", np.exp(np.minimum(blurred, 0))))


@pytest.fixture(scope="module")
def board(everything: pd.DataFrame) -> Leaderboard:
    runs = {"bad": 6.0, "good": 0.0, "fair": 1.5}
    candidates = [
        Candidate(n, worse(everything, s), metadata={"balancing": n.upper()}) for n, s in runs.items()
    ]
    return compare(candidates, FAST, 0, baseline="bad", first_tasks=["OS"])


def test_good_leads(board: Leaderboard) -> None:
    assert board.order == ["good", "fair", "bad"]
    assert board.best == "good"
    assert next(iter(board.tasks.items())) == ("OS", "survival")
    assert set(board.tasks) == {"MSI", "LISS", "OS", "Grade"}
    assert board.mean_ranks.to_dict() == {"good": 1, "fair": 2, "bad": 3}


def test_all_pairs_of_every_task_and_of_their_mean(board: Leaderboard) -> None:
    assert list(board.pairs) == list(board.tasks)
    assert board.overall is not None
    assert board.overall.best_set[0] == "good"
    assert "bad" not in board.overall.best_set
    primary = board.estimates.query("role == 'test' and cohort == 'all' and `class` == ''").set_index(
        ["task", "metric", "method"]
    )["value"]
    metric = {"MSI": "auroc", "LISS": "pearson", "OS": "c_index", "Grade": "auroc"}
    good = np.mean([primary[(task, m, "good")] for task, m in metric.items()])
    assert board.overall.values[board.overall.names.index("good")] == pytest.approx(good)
    for pairs in board.pairs.values():
        assert (pairs.p_joint >= pairs.p).all()


def test_estimates_rank_errors_upside_down(board: Leaderboard) -> None:
    assert tuple(board.estimates) == ESTIMATE_COLUMNS
    mae = board.estimates.query("metric == 'mae' and role == 'test'").set_index("method")
    assert mae["rank"].to_dict() == {"good": 1, "fair": 2, "bad": 3}
    assert mae.loc["good", "value"] < mae.loc["bad", "value"]
    assert board.estimates.query("metric == 'threshold'")["rank"].isna().all()


def test_the_table_has_a_row_per_run_and_columns_per_metric(board: Leaderboard) -> None:
    table = board.table.set_index("method")
    assert list(table.index) == board.order
    assert table.loc["good", "balancing"] == "GOOD"
    assert {"mean_rank", "may_be_best", "rank_low", "test/MSI/auroc", "external/a/OS/c_index"} <= set(table)
    row = table.loc["good"]
    assert row["test/MSI/auroc/low"] < row["test/MSI/auroc"] < row["test/MSI/auroc/high"]
    assert row["test/OS/c_index/rank"] == 1
    assert row["rank_low"] == 1
    assert table.loc["bad", "rank_high"] == 3


def test_scores_are_the_folds_and_multiclass_their_mean_over_classes(board: Leaderboard) -> None:
    from sklearn.metrics import roc_auc_score

    subset = board.scores.query("method == 'good'")
    assert set(subset["fold"]) == {"0-0", "0-1", "0-2", "0-3"}
    rows = next(c for c in board.candidates if c.name == "good").predictions
    part = rows.query("task == 'Grade' and role == 'test' and fold == 2")
    expected = np.mean([roc_auc_score(g["target"], g["score"]) for _, g in part.groupby("class")])
    result = subset.query("task == 'Grade' and metric == 'auroc' and fold == '0-2'")["value"]
    assert result.to_list() == pytest.approx([expected])


def test_references_are_the_best_and_the_baseline(board: Leaderboard) -> None:
    assert set(board.differences["reference"]) == {"good", "bad"}
    up = board.differences.query(
        "reference == 'bad' and run == 'good' and role == 'test' and metric == 'pearson'"
    )
    assert up["difference"].item() > 0
    down = board.differences.query(
        "reference == 'good' and run == 'bad' and role == 'test' and metric == 'pearson'"
    )
    assert down["difference"].item() == pytest.approx(-up["difference"].item())


def test_tasks_that_not_everybody_has_are_shown_but_not_ranked(binary: Rows, regression: Rows) -> None:
    both = pd.concat([binary(), regression()])
    result = compare([Candidate("joint", both), Candidate("single", binary())], FAST)
    assert list(result.tasks) == ["MSI"]
    assert result.mean_ranks.to_dict() == {"joint": 1.5, "single": 1.5}
    table = result.table.set_index("method")
    assert np.isfinite(table.loc["joint", "test/LISS/pearson"])
    assert np.isnan(table.loc["single", "test/LISS/pearson"])


def test_one_run_or_a_strange_baseline_is_refused(binary: Rows) -> None:
    one = Candidate("one", binary())
    with pytest.raises(DataError, match="two runs or more"):
        compare([one], FAST)
    with pytest.raises(DataError, match="no run 'x'; runs: one, two"):
        compare([one, Candidate("two", binary())], FAST, baseline="x")
