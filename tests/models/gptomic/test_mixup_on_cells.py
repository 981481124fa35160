"""On real cells: mixtures of many cells teach an adapter to read pseudo-bulk; two cells less, single cells hardly."""

import numpy as np
import pytest
from benchmarks.mixup import Split, interval, packaged_cells, table_of


def test_dirichlet_beats_two_cells_beat_single_cells(tmp_path):
    split = Split.of(packaged_cells(), 3, tmp_path)
    r = {
        mixup: split.scores({"mixup": mixup, "samples": 3000})["r_100"]
        for mixup in ("none", "two_cells", "dirichlet")
    }
    assert r["none"] + 0.1 < r["two_cells"]
    assert r["two_cells"] + 0.1 < r["dirichlet"]
    assert r["dirichlet"] > 0.6
    assert len(split.mixtures) == 3


def test_interval_is_that_of_nadeau_and_bengio():
    # Five differences, 30 % of the data in the test part: sd² (1/5 + 3/7), t of 4 degrees of freedom.
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    found = interval(values)
    half = 2.7764451 * np.sqrt(0.025 * (1 / 5 + 3 / 7))
    assert found["difference"] == pytest.approx(0.3)
    assert found["high"] - found["difference"] == pytest.approx(half)
    assert found["difference"] - found["low"] == pytest.approx(half)


def test_a_table_compares_rows_split_by_split():
    from benchmarks import mixup

    class Fixed:
        def __init__(self, seed):
            self.seed = seed

        def scores(self, settings):
            r = {"none": 0.1, "dirichlet": 0.5}[settings["mixup"]] + 0.01 * self.seed * (
                settings["mixup"] == "none"
            )
            return {"r_100": r}

    table = table_of([Fixed(0), Fixed(1)], ("none", "Dirichlet"))
    assert table["none"]["r_100"] == pytest.approx(0.105)
    assert table["Dirichlet"]["against_none"]["difference"] == pytest.approx(0.395)
    assert "against_none" not in table["none"]
    assert set(mixup.KEYS.values()) <= set(mixup.METHODS)
