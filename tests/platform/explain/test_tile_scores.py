"""Tile scores: round trip, bytes, refusals, names of files."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.explain.tile_scores import (
    MapCheck,
    TileScores,
    list_tile_scores,
    merge_checks,
    read_tile_scores,
    scores_path,
    write_tile_scores,
)


def scores(**changes: Any) -> TileScores:
    values: dict[str, Any] = {
        "slide": "CRC/A-3", "patient": "A", "cohort": "CRC", "task": "MSI", "kind": "binary", "class_name": "MSIH",
        "method": "gradient_input", "x": [0, 300, 0], "y": [7, 7, 407], "side": 300.5, "score": [0.5, -2, 0.5],
        "unit": "change of the logit", "synthetic": True,
        "checks": (MapCheck("deletion", 0.25, math.nan, math.inf, True, "fine"),),
    }  # fmt: skip
    return TileScores(**(values | changes))


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    written = scores()
    path = scores_path(tmp_path, written.slide, written.task, written.class_name, written.method)
    back = read_tile_scores(write_tile_scores(written, path))
    for item in dataclasses.fields(TileScores):
        one, other = getattr(written, item.name), getattr(back, item.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        elif item.name != "checks":
            assert one == other, item.name
    (check,) = back.checks
    assert (check.name, check.value, check.passed) == ("deletion", 0.25, True)
    assert math.isnan(check.low)
    assert math.isnan(check.high)  # JSON knows no infinity: an open end has no number
    assert list_tile_scores(tmp_path) == [path]


def test_the_spread_over_models_is_kept(tmp_path: Path) -> None:
    back = read_tile_scores(write_tile_scores(scores(spread=[0.1, 0.2, 0.3]), tmp_path / "a.parquet"))
    assert back.spread is not None
    np.testing.assert_allclose(back.spread, [0.1, 0.2, 0.3], rtol=1e-6)
    with pytest.raises(DataError, match="2 spreads for 3 scores"):
        scores(spread=[0.1, 0.2])


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    one = write_tile_scores(scores(), tmp_path / "one.parquet").read_bytes()
    assert one == write_tile_scores(scores(), tmp_path / "other.parquet").read_bytes()


def test_names_of_files_stay_inside_the_folder(tmp_path: Path) -> None:
    path = scores_path(tmp_path, "../../etc/x", "a/b", "..", "ig")
    assert path.parent.parent == tmp_path
    assert path.name.startswith("a_b-")
    assert scores_path(tmp_path, "s", "HER2", "+", "ig") != scores_path(tmp_path, "s", "HER2", "-", "ig")
    assert scores_path(tmp_path, "s", "OS", "", "ig").name == "OS.ig.parquet"


def test_order_and_sign() -> None:
    map_ = scores()
    assert map_.order().tolist() == [0, 2, 1]  # ties from the top left
    assert map_.signed
    assert not scores(score=[0, 1, 2]).signed


def test_checks_are_merged_by_name() -> None:
    failed = MapCheck("deletion", 0.0, -1.0, 1.0, False, "no better than chance")
    other = MapCheck("folds", 0.9, 0.8, 1.0, True, "folds agree")
    merged = merge_checks(scores(), [failed, other])
    assert merged.checks == (failed, other)
    assert merged.failed == (failed,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": [1.0, math.nan, 2.0]}, "1 of 3 tile scores for MSI are not finite"),
        ({"score": [1.0]}, "3 x, 3 y and 1 scores do not belong together"),
        ({"x": [], "y": [], "score": []}, "without tiles"),
        ({"side": 0.0}, "side of a tile is 0"),
        ({"x": [0.5, 1, 2]}, "x of the tiles has fractions"),
        ({"y": ["a", "b", "c"]}, "y of the tiles is not a list of numbers"),
    ],
)
def test_what_is_no_map_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        scores(**changes)


def test_files_that_are_no_tile_scores_are_refused(tmp_path: Path) -> None:
    import pandas as pd

    with pytest.raises(DataError, match="cannot be read"):
        read_tile_scores(tmp_path / "absent.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="not a table of tile scores"):
        read_tile_scores(tmp_path / "other.parquet")
