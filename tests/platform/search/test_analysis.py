"""Ranking, possible ranks, methods, best so far, failures: everything from the table of trials."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.search.analysis import (
    anytime_curve,
    failures,
    objective_name,
    possible_ranks,
    rank_methods,
    rank_trials,
    read_table,
    task_metrics,
    varied,
    write_rankings,
)
from equipoise.platform.search.holdout import inner_validation_rows
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
    assert done["may_be_best"].iloc[0]
    assert result["may_be_best"].tolist()[-3:] == [pd.NA] * 3
    assert (done["rank_low"] <= done["rank"]).all()
    assert (done["rank"] <= done["rank_high"]).all()
    assert not any(str(name).startswith("fold") and name != "folds" for name in result)


def test_possible_ranks_follow_the_differences_and_their_noise() -> None:
    apart = possible_ranks(of_values([0.9, 0.91, 0.89], [0.5, 0.52, 0.48], [0.51, 0.5, 0.49]))
    assert apart["may_be_best"].tolist() == [True, False, False]
    assert apart["rank_low"].tolist() == [1, 2, 2]
    assert apart["rank_high"].tolist() == [1, 3, 3]
    # Ahead in all three folds by a tenth of what folds differ by: not certain.
    near = possible_ranks(of_values([0.60, 0.70, 0.80], [0.599, 0.71, 0.769], [0.61, 0.68, 0.78]))
    assert near["may_be_best"].all()
    assert near["rank_high"].tolist() == [3, 3, 3]


def test_what_folds_share_is_no_noise() -> None:
    rng = np.random.default_rng(0)
    shifts = np.array([0.0, 0.1, -0.1])
    same = of_values(*[(v + shifts + 1e-4 * rng.normal(size=3)).tolist() for v in (0.61, 0.60, 0.59)])
    assert possible_ranks(same)["may_be_best"].tolist() == [True, False, False]


def test_equal_trials_are_rarely_told_apart() -> None:
    """Twelve equal trials on four folds, 60 searches: the best is excluded in about one in twenty, not in most."""
    rng = np.random.default_rng(1)
    apart = 0
    for _ in range(60):
        fold = rng.normal(size=4)
        done = of_values(*[(0.7 + 0.05 * fold + 0.03 * rng.normal(size=4)).tolist() for _ in range(12)])
        apart += bool((possible_ranks(done)["rank_high"] < 12).any())
    assert apart / 60 < 0.15


def test_one_fold_says_nothing_about_ranks() -> None:
    possible = possible_ranks(of_values([0.9], [0.1]))
    assert possible.isna().all().all()
    assert possible.index.tolist() == ["t0", "t1"]


def test_methods_are_summed_up(table: pd.DataFrame) -> None:
    result = rank_trials(table)
    methods = rank_methods(table, result)
    assert set(methods["method"]) == set(searched.METHODS)
    assert methods["trials"].sum() == 40
    assert methods["failed"].sum() == 2
    assert methods["may_be_best"].sum() == result["may_be_best"].sum()
    assert methods["rank_median"].is_monotonic_increasing
    best = methods.iloc[0]
    own = result[result["method"] == best["method"]]
    assert best["rank_median"] == own["rank"].median()
    assert best["objective_best"] == own["objective"].where(own["status"] == "ok").max()


def test_a_search_without_methods_has_no_methods() -> None:
    study = searched.study_of({"space": {"loss_weights": "simplex"}})
    table = trial_table(searched.trials_of(study, 8))
    assert rank_methods(table, rank_trials(table)).empty
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


def test_only_labelled_patients_are_counted_on_inner_validation() -> None:
    study = searched.study_of()
    patients = pd.DataFrame({"patient": list("abcd"), "MSI": [0, 1, np.nan, 1], "LISS": 1.0})
    patients = patients.assign(**{"OS.time": [9.0, np.nan, np.nan, 9.0], "OS.event": 1.0})
    context = SimpleNamespace(
        study=study,
        inputs=SimpleNamespace(folds=[SimpleNamespace(test=["a", "b"]), SimpleNamespace(test=["c"])]),
        cohorts=SimpleNamespace(patients=patients),
    )
    (trial,) = searched.trials_of(study, 1, failed=0, pruned=0)
    rows = inner_validation_rows(trial, context)
    assert {row["task"]: row["n"] for row in rows} == {"MSI": 2, "LISS": 3, "OS": 1}
