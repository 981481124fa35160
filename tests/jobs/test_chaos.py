"""A short version of ``benchmarks.chaos``: a node and a worker are killed while folds are trained."""

from pathlib import Path

import pytest
from benchmarks.chaos import ROWS, disturb
from benchmarks.chaos_cluster import ChaosCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_folds_on_nodes_that_die_equal_those_on_nodes_that_live(tmp_path: Path) -> None:
    with ChaosCluster() as cluster:
        row = disturb("train", ROWS["train"], tmp_path, cluster, seed=3, kills=2)
    assert row["kills"] > 0
    assert row["results"] == 9, "predictions, weights and history of three folds"
    assert (row["lost"], row["unequal"]) == (0, 0)
