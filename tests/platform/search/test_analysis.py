"""Ranking, P(best), methods, best so far, failures: everything from the table of trials."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.search.analysis import (
    anytime_curve,
    best_probabilities,
    failures,
    method_of,
    method_ranking,
    objective_name,
    rank_methods,
    rank_trials,
    read_table,
    task_metrics,
    varied,
    write_rankings,
)
from equipoise.platform.search.trial_records import trial_table, write_table

_spec = importlib.util.spec_from_file_location("searched", Path(__file__).with_name("searched.py"))
searched = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(searched)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return trial_table(searched.trials_of(searched.study_of(), 40))


def of_values(*folds: list[float]) -> pd.DataFrame:
    """A table of finished trials with these values of the objective by fold."""
    rows = []
    for index, values in enumerate(folds):
        row = {"name": f"t{index}", "status": "ok", "folds": len(values), "objective": np.mean(values)}
        row |= {f"fold{k}/val/mean": value for k, value in enumerate(values)} | {"val/mean": np.mean(values)}
        rows.append(row)
    return pd.DataFrame(rows)


def test_the_standing_ranks_whole_trials_and_keeps_the_others(table: pd.DataFrame) -> None:
    result = rank_trials(table)
    done = result[result["rank"].notna()]
    assert len(result) == 40
    assert set(done["status"]) == {"ok"}
    assert done["objective"].is_monotonic_decreasing
    assert done["rank"].tolist() == list(range(1, 38))
    assert result["status"].tolist()[-3:] == ["pruned", "failed", "failed"]
    assert done["p_best"].sum() == pytest.approx(1)
    assert not any(str(name).startswith("fold") and name != "folds" for name in result)


def test_p_best_follows_the_differences_and_their_noise() -> None:
    rng = np.random.default_rng(0)
    apart = of_values([0.9, 0.91, 0.89], [0.5, 0.52, 0.48], [0.51, 0.5, 0.49])
    assert best_probabilities(apart, rng)["p_best"].tolist() == [1.0, 0.0, 0.0]
    # Ahead in all three folds by a tenth of what folds differ by: not certain.
    near = of_values([0.60, 0.70, 0.80], [0.599, 0.71, 0.769], [0.61, 0.68, 0.78])
    shares = best_probabilities(near, rng)["p_best"]
    assert shares.sum() == pytest.approx(1)
    assert 0.4 < shares["t0"] < 0.95


def test_what_folds_share_is_no_noise() -> None:
    rng = np.random.default_rng(0)
    shifts = np.array([0.0, 0.1, -0.1])
    same = of_values(*[(value + shifts).tolist() for value in (0.61, 0.60, 0.59)])
    assert best_probabilities(same, rng)["p_best"].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_one_fold_says_nothing_about_p_best() -> None:
    shares = best_probabilities(of_values([0.9], [0.1]), np.random.default_rng(0))
    assert shares.isna().all().all()
    assert shares.index.tolist() == ["t0", "t1"]


def test_methods_are_summed_up(table: pd.DataFrame) -> None:
    result = rank_trials(table)
    methods = rank_methods(table, result)
    assert set(methods["method"]) == set(searched.METHODS)
    assert methods["trials"].sum() == 40
    assert methods["failed"].sum() == 2
    assert methods["p_best"].sum() == pytest.approx(1)
    assert methods["rank_median"].is_monotonic_increasing
    best = methods.iloc[0]
    own = result[result["method"] == best["method"]]
    assert best["rank_median"] == own["rank"].median()
    assert best["objective_best"] == own["objective"].where(own["status"] == "ok").max()


def test_methods_are_ranked_by_the_mean_of_their_trials(table: pd.DataFrame) -> None:
    ranking = method_ranking(table)
    assert ranking is not None
    assert ranking.blocks == 9
    assert (ranking.tasks, ranking.folds) == (3, 3)
    done = table[table["status"] == "ok"]
    block = done.groupby(method_of(done))["fold0/val/MSI/auroc"].mean()
    values = pd.concat(
        [
            done.groupby(method_of(done))[f"fold{k}/val/{task}/{metric}"].mean().rank(ascending=False)
            for task, metric in task_metrics(table).items()
            for k in range(3)
        ],
        axis=1,
    )
    assert set(block.index) == set(ranking.mean_ranks.index)
    pd.testing.assert_series_equal(
        values.mean(axis=1).sort_index(), ranking.mean_ranks.sort_index(), check_names=False
    )


def test_a_search_without_methods_has_no_methods() -> None:
    study = searched.study_of({"space": {"loss_weights": "simplex"}})
    table = trial_table(searched.trials_of(study, 8))
    assert rank_methods(table, rank_trials(table)).empty
    assert method_ranking(table) is None
    assert {f"param/loss_weights.{task}" for task in ("MSI", "LISS", "OS")} <= set(varied(table))


def test_what_was_maximised_is_found_in_the_table(table: pd.DataFrame) -> None:
    assert objective_name(table) == "val/mean"
    other = table.assign(objective=table["val/OS/c_index"])
    assert objective_name(other) == "val/OS/c_index"
    assert task_metrics(table) == {"LISS": "pearson", "MSI": "auroc", "OS": "c_index"}


def test_constants_are_not_varied(table: pd.DataFrame) -> None:
    names = varied(table)
    assert "param/training.lr" in names
    assert "param/balancing.uncertainty.lr" in names  # some trials have it
    assert "param/training.weight_decay" not in names


def test_the_best_so_far_is_in_the_order_of_ends(table: pd.DataFrame) -> None:
    late = table.copy()
    late.loc[0, "ended"] = "2026-11-21T18:00:00+0000"
    result = anytime_curve(late)
    assert result["name"].iloc[-1] == table["name"].iloc[0]
    assert result["best"].is_monotonic_increasing
    assert result["best"].iloc[-1] == table.loc[table["status"] == "ok", "objective"].max()
    assert result["cpu_seconds"].iloc[-1] == pytest.approx(table["cpu_seconds"].sum())
    assert (
        result["elapsed_seconds"].iloc[0] == 110
    )  # the second one ends first, the first one began a minute before
    assert result["objective"].isna().sum() == 3


def test_failures_have_their_reasons(table: pd.DataFrame) -> None:
    lost = failures(table)
    assert lost["name"].tolist() == table["name"].tolist()[-2:]
    assert lost["reason"].str.contains("nan").all()
    assert lost["folds"].tolist() == [0, 1]


def test_files_are_written_and_marked(tmp_path: Path) -> None:
    write_table(searched.trials_of(searched.study_of(), 12), tmp_path / "trials.parquet")
    result = write_rankings(tmp_path, synthetic=True)
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    assert board["name"].tolist() == result["name"].tolist()
    assert {"param/training.lr", "val/MSI/auroc", "objective_se"} <= set(board)
    assert board["synthetic"].all()
    assert pd.read_csv(tmp_path / "methods.csv")["synthetic"].all()


def test_trials_that_all_failed_have_a_standing(tmp_path: Path) -> None:
    write_table(searched.trials_of(searched.study_of(), 4, failed=4), tmp_path / "trials.parquet")
    result = write_rankings(tmp_path, synthetic=False)
    assert result["rank"].isna().all()
    assert anytime_curve(result)["best"].isna().all()


def test_what_is_no_table_of_trials_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no table of trials yet"):
        read_table(tmp_path / "trials.parquet")
    pd.DataFrame({"index": [0]}).to_parquet(tmp_path / "trials.parquet")
    with pytest.raises(DataError, match="lacks the columns name, status"):
        read_table(tmp_path / "trials.parquet")
