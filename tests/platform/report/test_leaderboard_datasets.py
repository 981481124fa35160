"""``equipoise leaderboard`` over several data sets: grouping by patients, ranks over data sets, refusals."""

import re
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.errors import DataError
from equipoise.platform.report.leaderboard_datasets import (
    DatasetLeaderboards,
    dataset_leaderboards_text,
    group_by_patients,
    write_dataset_leaderboards,
)

WAYS = (("equal", "none", 0.0), ("uncertainty", "none", 4.0))
DATASETS = ("brca", "luad", "gbm")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, made: type, write: object) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        write(  # type: ignore[operator]
            root / dataset / w,
            made(
                prefix=dataset,
                seed=i,
                model_seed=i,
                noise=noise,
                balancing=(w, a),
                latents=False,
                patients=24,
            ),
        )
        for i, dataset in enumerate(DATASETS)
        for w, a, noise in WAYS
    ]


@pytest.fixture(scope="module")
def written(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> DatasetLeaderboards:
    return write_dataset_leaderboards(group_by_patients(runs), tmp_path_factory.mktemp("out"), "equal")


def test_runs_that_share_patients_are_one_data_set(runs: list[Path]) -> None:
    groups = group_by_patients([runs[0], runs[2], runs[1], runs[3], runs[4]])
    assert groups == [[runs[0], runs[1]], [runs[2], runs[3]], [runs[4]]]


def test_three_data_sets_have_ranks_and_their_diagram(written: DatasetLeaderboards) -> None:
    assert list(written.boards) == list(DATASETS)
    assert written.ranking is not None
    assert written.ranking.mean_ranks.to_dict() == {"equal": 1, "uncertainty": 2}
    assert written.ranking.datasets == DATASETS
    assert written.ranking.friedman.chi2 == pytest.approx(
        3
    )  # N (k - 1) where all data sets agree on two methods
    html = written.page.read_text()
    assert "critical-difference" in html
    assert "SYNTHETIC DATA" in html
    assert re.findall(r'<section id="(\w+)"', html) == ["datasets"]
    table = pd.read_csv(written.table)
    assert table.groupby("dataset")["method"].nunique().to_dict() == dict.fromkeys(sorted(DATASETS), 2)
    for dataset in DATASETS:
        assert (written.page.parent / dataset / "leaderboard.html").exists()
    assert "Friedman's test over the data sets" in dataset_leaderboards_text(written)


def test_two_data_sets_have_no_rank_test_and_say_why(runs: list[Path], tmp_path: Path) -> None:
    two = write_dataset_leaderboards(group_by_patients(runs[:4]), tmp_path)
    assert two.ranking is None
    assert "critical-difference" not in two.page.read_text()
    assert "this is 2 data sets" in dataset_leaderboards_text(two)


def test_every_data_set_needs_every_method(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not every method is in each of them") as refused:
        write_dataset_leaderboards([runs[:2], runs[4:5]], tmp_path)
    assert "uncertainty" in str(refused.value)
